"""The backbone of DDTs: patches embedded twice, for the encoder and for the decoder, and an output conditioned by token.

How two stages are one program is told in `graftax.blocks.ddt`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax.backbones.classes import ClassConditional
from graftax.backbones.ddt.frame import rope, time_embed
from graftax.backbones.dit.frame import LabelEmbed
from graftax.backbones.embedders import FREQUENCIES, FinalLayer, FlatPatchEmbed
from graftax.backbones.overrides import check_names, refuse_contradictions
from graftax.blocks import Context, State
from graftax.blocks.base import STREAM
from graftax.blocks.ddt import KINDS, token_vec
from graftax.errors import BadInput
from graftax.models.backbone import Cond, FrameCost
from graftax.models.prediction import time_at
from graftax.ops.base import Params, call
from graftax.ops.placement import place
from graftax.spec import ModelSpec, Option

OPTIONS = ("channels", "classes", "patch")
"""Options of the frame."""

OWN = ("encoder_blocks", "input_size")
"""Overrides that are no option of an operator."""


class DDT(ClassConditional):
    """The backbone: the streams "cond" of the encoder and "img" of the decoder, conditioned on a time and a class."""

    fixed = ()
    fills_in = False

    def check(self, spec: ModelSpec) -> None:
        """Raise `BadInput` where the spec is not that of a DDT."""
        if unknown := sorted(dict(spec.frame).keys() - set(OPTIONS)):
            raise BadInput(f"ModelSpec.frame {unknown[0]}: not known, expected {OPTIONS}")
        classes = spec.option("classes")
        if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
            raise BadInput(f"ModelSpec.frame classes: got {classes!r}, expected a positive integer")
        if spec.sizes.text or not spec.tokens or spec.sizes.head_dim % 4:
            raise BadInput(f"ModelSpec.sizes: {spec.sizes}, expected image tokens, no text, heads of 4 k channels")
        for i, block in enumerate(spec.blocks):
            if block.kind not in KINDS:
                raise BadInput(f"blocks[{i}]: of the kind {block.kind!r}, expected one of {KINDS} in a DDT")
            if block["adaln"].kind == "adaln_shared":
                raise BadInput(f"blocks[{i}].adaln: adaln_shared, expected another: a DDT's blocks are conditioned by two")

    def declare(self, module: nn.Module, spec: ModelSpec) -> None:
        """Create the parameters outside the blocks inside `module`."""
        d, patch, images = spec.width, spec.option("patch"), jnp.zeros((1, *spec.image_shape))
        tokens = FlatPatchEmbed(d, patch, name="x_embedder")(images)
        FlatPatchEmbed(d, patch, name="s_embedder")(images)
        c = time_embed(d, "t_embedder")(jnp.zeros(1))
        LabelEmbed(spec.classes, d, name="y_embedder")(jnp.zeros(1, jnp.int32))
        self._final(spec, None, "final")(tokens, c)

    def embed(
        self, spec: ModelSpec, params: Params, x: jax.Array, t: jax.Array, cond: Cond, dtype: DTypeLike | None
    ) -> tuple[State, Context]:
        """Tokens (b, n, d) of the images x (b, h, w, c) for either stage; embeddings of t and of t with the class y, (b, d)
        each, and the rotary positions."""
        x, patches = x.astype(jnp.float32), FlatPatchEmbed(spec.width, spec.option("patch"), dtype)
        state = {
            stream: place(call(patches, params[name], x).astype(jnp.float32), *STREAM)
            for stream, name in (("cond", "s_embedder"), ("img", "x_embedder"))
        }
        time = place(call(time_embed(spec.width), params["t_embedder"], t), None, None)  # whole, as in a DiT
        vec = place(time + self._label(spec, params, cond["y"]), None, None)
        return state, Context(place(vec, "batch", "width"), rope=rope(spec.sizes), time=place(time, "batch", "width"))

    def _label(self, spec: ModelSpec, params: Params, y: jax.Array) -> jax.Array:
        return call(LabelEmbed(spec.classes, spec.width), params["y_embedder"], y)

    def head(self, spec: ModelSpec, params: Params, state: State, context: Context, dtype: DTypeLike | None) -> jax.Array:
        """The velocity (b, h, w, c) of the decoder's tokens, conditioned on the encoder's."""
        out = call(self._final(spec, dtype), params["final"], state["img"], token_vec(state, context))
        return place(out, "batch", None, None, None)

    def _final(self, spec: ModelSpec, dtype: DTypeLike | None, name: str | None = None) -> FinalLayer:
        return FinalLayer(spec.option("patch"), spec.out_channels, spec.sizes.grid, dtype, packed=True, name=name)

    def check_image(self, spec: ModelSpec, shape: tuple[int, ...]) -> None:
        """Raise `BadInput` where images (b, h, w, c) are not of whole patches: positions are those of any size."""
        patch, channels = spec.option("patch"), spec.option("channels")
        if shape[3] != channels or shape[1] % patch or shape[2] % patch or not shape[1] * shape[2]:
            raise BadInput(f"x: shape {shape}, expected (b, h, w, {channels}), h and w multiples of the patch {patch}")

    def vectors(self, spec: ModelSpec, params: Params, count: int) -> jax.Array:
        """About `count` of the encoder's conditioning vectors (s, d): times evenly spread, at each of them classes in turn.
        The decoder's are tokens, of which nothing is known without images."""
        classes = min(spec.classes + 1, max(1, round(math.sqrt(count))))
        times = -(-count // classes)
        t, y = jnp.meshgrid(
            time_at(spec.prediction, (jnp.arange(times) + 0.5) / times),
            jnp.round(jnp.linspace(0, spec.classes, classes)), indexing="ij",
        )  # fmt: skip
        time = call(time_embed(spec.width), params["t_embedder"], t.reshape(-1))
        return time + self._label(spec, params, y.reshape(-1).astype(jnp.int32))

    def sampling(self, spec: ModelSpec) -> Mapping[str, Any]:
        """As the authors draw 256 pixels: Euler in 250 steps, the last from a noise fraction of 0.04, and guidance 2 on all
        channels at data fractions above 0.3."""
        guidance = {"cfg_scale": 2.0, "cfg_channels": None, "interval": (0.0, 0.7 / 0.3)}
        return {"sampler": "euler", "steps": 250, "spacing": "tail", "last_size": 0.04, **guidance}

    def cost(self, spec: ModelSpec) -> FrameCost:
        """Parameters and FLOPs outside the blocks, in closed form."""
        d, n, numbers = spec.width, spec.tokens, spec.option("patch") ** 2 * spec.option("channels")
        embedders = 2 * (numbers * d + d) + FREQUENCIES * d + d + d * d + d + (spec.classes + 1) * d
        final = d * 2 * d + 2 * d + d * numbers + numbers
        embed = 4 * n * d * numbers + 2 * d * (FREQUENCIES + d)
        return FrameCost(embedders + final, 0, embed, 2 * n * d * numbers + 4 * n * d * d)

    def override(self, spec: ModelSpec, overrides: Mapping[str, Option]) -> ModelSpec:
        """`spec`: its file says all by now. Raises `BadInput` on what is unknown or contradicts it."""
        check_names(overrides, OWN)
        refuse_contradictions(spec, overrides)
        encoder = sum(block.kind == KINDS[0] for block in spec.blocks)
        for name, value in {"encoder_blocks": encoder, "input_size": spec.image_shape[0]}.items():
            if overrides.get(name, value) != value:
                raise BadInput(f"override {name}={overrides[name]!r}: the file says {value}")
        return spec


BACKBONE = DDT()
