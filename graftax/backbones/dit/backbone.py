"""The backbone of DiTs: what its frame makes of images, times and classes, and what it makes of the blocks' result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from graftax.backbones.classes import ClassConditional
from graftax.backbones.dit.frame import COMPAT, SWITCHES, LabelEmbed, compat_of, grid_rope
from graftax.backbones.dit.joint import ClassToken, check_joint, joined, parted
from graftax.backbones.dit.overrides import override
from graftax.backbones.embedders import FREQUENCIES, FinalLayer, PatchEmbed, TimestepEmbed, sinusoidal_positions
from graftax.blocks import Context, State
from graftax.blocks.base import STREAM
from graftax.blocks.ddt import KINDS, token_vec
from graftax.errors import BadInput
from graftax.models.backbone import Cond, FrameCost
from graftax.models.prediction import time_at
from graftax.ops.base import Params, call
from graftax.ops.placement import place
from graftax.spec import ModelSpec, Option

SHARING = ("adaln_shared", "adaln_shared_lowrank")
"""Modulations that read what is computed once for all blocks."""

OPTIONS = ("channels", "classes", "compat", "features", "patch", "token", *SWITCHES)
"""Options of the frame; what is not said is none, or as in `SWITCHES` (`graftax.backbones.dit.frame`, `.joint`)."""


class DiT(ClassConditional):
    """The backbone: one image stream, conditioned on a time and a class."""

    fixed = ("pos_embed",)
    fills_in = False
    options: ClassVar[tuple[str, ...]] = OPTIONS

    def check(self, spec: ModelSpec) -> None:
        """Raise `BadInput` where the frame's options are not those of a DiT."""
        if unknown := sorted(dict(spec.frame).keys() - set(self.options)):
            raise BadInput(f"ModelSpec.frame {unknown[0]}: not known, expected {self.options}")
        classes = spec.option("classes")
        if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
            raise BadInput(f"ModelSpec.frame classes: got {classes!r}, expected a positive integer")
        if compat_of(spec) not in COMPAT:
            raise BadInput(f"ModelSpec.frame compat: got {compat_of(spec)!r}, expected one of {COMPAT}")
        for name, default in SWITCHES.items():
            if not isinstance(spec.option(name, default), bool):
                raise BadInput(f"ModelSpec.frame {name}: got {spec.option(name)!r}, expected true or false")
        if spec.option("rope") and spec.sizes.head_dim % 4:
            raise BadInput(f"ModelSpec.frame rope: heads of {spec.sizes.head_dim} channels, expected a multiple of 4")
        for i, block in enumerate(spec.blocks):
            if (block.kind in KINDS) != spec.option("decoupled", False):
                expected = f"one of {KINDS}" if spec.option("decoupled") else "another, or the frame's option decoupled"
                raise BadInput(f"blocks[{i}]: of the kind {block.kind!r}, expected {expected}")
            if block.kind in KINDS and block["adaln"].kind in SHARING:
                raise BadInput(f"blocks[{i}].adaln: {block['adaln']}, expected another: blocks of two stages share none")
        check_joint(spec)
        more, looked_at = int(spec.option("token", 0) > 0), 2 * spec.option("class_tokens", False)
        if spec.sizes.text != more or spec.sizes.context != looked_at or not spec.tokens:
            expected = "a class token, as its only text" if more else "no text"
            raise BadInput(f"ModelSpec.sizes: {spec.sizes}, expected image tokens, {expected}, and context={looked_at}")

    def declare(self, module: nn.Module, spec: ModelSpec) -> None:
        """Create the parameters outside the blocks inside `module`."""
        d, token = spec.width, spec.option("token", 0)
        rows, columns, _ = spec.image_shape
        tokens = PatchEmbed(d, spec.option("patch"), name="x_embedder")(jnp.zeros((1, rows, columns, _patched(spec))))
        module.param("pos_embed", lambda _: jnp.asarray(self.positions(spec)))
        c = TimestepEmbed(d, name="t_embedder")(jnp.zeros(1))
        self.labels(spec, name="y_embedder")(jnp.zeros(1, jnp.int32))
        self._final(spec, None, name="final")(tokens[..., : self.head_width(spec)], c)
        if token:
            ClassToken(d, name="class_token")(jnp.zeros((1, token)))
            nn.Dense(token, kernel_init=nn.initializers.zeros, name="class_out")(c)

    def positions(self, spec: ModelSpec) -> np.ndarray:
        """The fixed table (1, n, d), of a class token zeros before it: (1, 1 + n, d)."""
        return np.pad(sinusoidal_positions(spec.width, spec.sizes.grid), ((0, 0), (spec.sizes.text, 0), (0, 0)))

    def embed(
        self, spec: ModelSpec, params: Params, x: jax.Array, t: jax.Array, cond: Cond, dtype: DTypeLike | None
    ) -> tuple[State, Context]:
        """Tokens (b, n, d) of the images x (b, h, w, c), and the conditioning vector (b, d) of t and the class y."""
        d, x, state, places = spec.width, x.astype(jnp.float32), State(), params["pos_embed"]
        if spec.option("token"):
            x, vector = parted(spec, x)
            state["txt"] = call(ClassToken(d), params["class_token"], vector) + places[:, :1]  # (b, 1, d)
        x = call(PatchEmbed(d, spec.option("patch"), dtype), params["x_embedder"], x)
        state["img"] = place(x.astype(jnp.float32) + places[:, spec.sizes.text :], *STREAM)  # (b, n, d)
        parts = self.conditions(spec, params, t, cond["y"])
        vec = self.vec(spec, params, t, cond["y"])  # the compiler computes what both need once
        # Going back, the gradient of vec is split over the batch and meets weights split over the width. XLA makes it whole
        # in between, with a warning if it is not told to; it is small.
        vec = place(vec, None, None)
        rope = grid_rope(spec.sizes) if spec.option("rope") else None
        tokens = jnp.stack(parts, axis=1) if spec.option("class_tokens") else None  # (b, 2, d)
        context = Context(place(vec, "batch", "width"), text=tokens, rope=rope)
        if spec.option("decoupled"):
            return {**state, "cond": state["img"]}, dataclasses.replace(context, time=place(parts[0], "batch", "width"))
        return state, context

    def conditions(self, spec: ModelSpec, params: Params, t: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Embeddings (b, d) of t (b,) and of y (b,)."""
        time = call(TimestepEmbed(spec.width, compat_of(spec)), params["t_embedder"], t)
        return time, call(self.labels(spec), params["y_embedder"], y)

    def vec(self, spec: ModelSpec, params: Params, t: jax.Array, y: jax.Array) -> jax.Array:
        """The conditioning vector (b, d): embeddings of t (b,) and, where blocks get it so, of y (b,), added."""
        time, label = self.conditions(spec, params, t, y)
        return time + label if spec.option("class_in_vec", True) else time

    def labels(self, spec: ModelSpec, name: str | None = None) -> LabelEmbed:
        """What embeds classes."""
        return LabelEmbed(spec.classes, spec.width, name=name)

    def head_width(self, spec: ModelSpec) -> int:
        """Width of the tokens that the final layer gets."""
        return spec.width

    def head(self, spec: ModelSpec, params: Params, state: State, context: Context, dtype: DTypeLike | None) -> jax.Array:
        """The output (b, h, w, out_channels): predicted noise, then the variance channels; of a flow the velocity alone."""
        vec = token_vec(state, context) if spec.option("decoupled") else context.vec
        out = call(self._final(spec, dtype), params["final"], state["img"], vec)
        if spec.prediction.is_flow:
            out = out[..., : _patched(spec)]  # SiT's second half has no meaning
        if spec.option("token"):
            both = {"adaln": params["final"]["adaln"], "linear": params["class_out"]}
            vector = call(FinalLayer(1, spec.option("token"), (1, 1), dtype), both, state["txt"], context.vec)
            out = joined(spec, out, vector[:, 0, 0])
        return place(out, "batch", None, None, None)

    def _final(self, spec: ModelSpec, dtype: DTypeLike | None, name: str | None = None) -> FinalLayer:
        channels = _patched(spec) * (2 if spec.prediction.network.variance else 1)
        rms = spec.option("final_rms", False)
        return FinalLayer(spec.option("patch"), channels, spec.sizes.grid, dtype, rms=rms, name=name)

    def vectors(self, spec: ModelSpec, params: Params, count: int) -> jax.Array:
        """About `count` conditioning vectors (s, d): times evenly spread, at each of them classes in turn."""
        classes = min(spec.classes + 1, max(1, round(math.sqrt(count))))
        times = -(-count // classes)
        t, y = jnp.meshgrid(
            time_at(spec.prediction.network, (jnp.arange(times) + 0.5) / times),
            jnp.round(jnp.linspace(0, spec.classes, classes)), indexing="ij",
        )  # fmt: skip
        return self.vec(spec, params, t.reshape(-1), y.reshape(-1).astype(jnp.int32))

    def cost(self, spec: ModelSpec) -> FrameCost:
        """Parameters and FLOPs outside the blocks, in closed form."""
        d, n, token = spec.width, spec.tokens, spec.option("token", 0)
        numbers = spec.option("patch") ** 2 * _patched(spec)
        out = numbers * (2 if spec.prediction.network.variance else 1)
        embedders = numbers * d + d + FREQUENCIES * d + d + d * d + d + (spec.classes + self.labels(spec).null) * d
        last = self.head_width(spec)
        final = d * 2 * last + 2 * last + last * out + out + last * spec.option("final_rms", False)
        embed = 2 * n * d * numbers + 2 * d * (FREQUENCIES + d)
        joint = token * d + 3 * d + d * token + token if token else 0
        fixed = (n + spec.sizes.text) * d
        vecs = n if spec.option("decoupled") else 1
        behind = 2 * n * last * out + 4 * vecs * d * last + 2 * d * token
        return FrameCost(embedders + final + joint, fixed, embed + 2 * token * d, behind)

    def sampling(self, spec: ModelSpec) -> Mapping[str, Any]:
        """DiT's and SiT's guidance is on 3 of 4 channels, ReDi's on the latents, that of other relatives on all channels."""
        if spec.prediction.time in ("noise", "log_sigma"):
            return {"cfg_channels": None}
        return {"cfg_channels": spec.latent_channels} if spec.option("features") else {}

    def override(self, spec: ModelSpec, overrides: Mapping[str, Option]) -> ModelSpec:
        """`spec` with what the user adds to a file (`graftax.backbones.dit.overrides`)."""
        return override(spec, overrides)


def _patched(spec: ModelSpec) -> int:
    """Channels that are cut into patches: all but those that hold a class token."""
    return spec.latent_channels if spec.option("token") else spec.option("channels")


BACKBONE = DiT()
