"""The backbone of DiTs: what its frame makes of images, times and classes, and what it makes of the blocks' result."""

from __future__ import annotations

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax.backbones.classes import ClassConditional
from graftax.backbones.dit.frame import COMPAT, LabelEmbed, compat_of, grid_rope
from graftax.backbones.dit.overrides import override
from graftax.backbones.embedders import FREQUENCIES, FinalLayer, PatchEmbed, TimestepEmbed, sinusoidal_positions
from graftax.blocks import Context, State
from graftax.blocks.base import STREAM
from graftax.errors import BadInput
from graftax.models.backbone import Cond, FrameCost
from graftax.models.prediction import time_at
from graftax.ops.base import Params, call
from graftax.ops.placement import place
from graftax.spec import ModelSpec, Option

OPTIONS = ("channels", "classes", "compat", "final_rms", "patch", "rope")
"""Options of the frame; `final_rms` and `rope` are false where nothing is said (`graftax.backbones.dit.frame`)."""


class DiT(ClassConditional):
    """The backbone: one image stream, conditioned on a time and a class."""

    fixed = ("pos_embed",)

    def check(self, spec: ModelSpec) -> None:
        """Raise `BadInput` where the frame's options are not those of a DiT."""
        if unknown := sorted(dict(spec.frame).keys() - set(OPTIONS)):
            raise BadInput(f"ModelSpec.frame {unknown[0]}: not known, expected {OPTIONS}")
        classes = spec.option("classes")
        if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
            raise BadInput(f"ModelSpec.frame classes: got {classes!r}, expected a positive integer")
        if compat_of(spec) not in COMPAT:
            raise BadInput(f"ModelSpec.frame compat: got {compat_of(spec)!r}, expected one of {COMPAT}")
        for name in ("final_rms", "rope"):
            if not isinstance(spec.option(name, False), bool):
                raise BadInput(f"ModelSpec.frame {name}: got {spec.option(name)!r}, expected true or false")
        if spec.option("rope") and spec.sizes.head_dim % 4:
            raise BadInput(f"ModelSpec.frame rope: heads of {spec.sizes.head_dim} channels, expected a multiple of 4")
        if spec.sizes.text or not spec.tokens:
            raise BadInput(f"ModelSpec.sizes: {spec.sizes}, expected image tokens and no text")

    def declare(self, module: nn.Module, spec: ModelSpec) -> None:
        """Create the parameters outside the blocks inside `module`."""
        d, patch = spec.width, spec.option("patch")
        tokens = PatchEmbed(d, patch, name="x_embedder")(jnp.zeros((1, *spec.image_shape)))
        module.param("pos_embed", lambda _: jnp.asarray(sinusoidal_positions(d, spec.sizes.grid)))
        c = TimestepEmbed(d, name="t_embedder")(jnp.zeros(1))
        LabelEmbed(spec.classes, d, name="y_embedder")(jnp.zeros(1, jnp.int32))
        self._final(spec, None, name="final")(tokens, c)

    def embed(
        self, spec: ModelSpec, params: Params, x: jax.Array, t: jax.Array, cond: Cond, dtype: DTypeLike | None
    ) -> tuple[State, Context]:
        """Tokens (b, n, d) of the images x (b, h, w, c), and the conditioning vector (b, d) of t and the class y."""
        d = spec.width
        x = call(PatchEmbed(d, spec.option("patch"), dtype), params["x_embedder"], x.astype(jnp.float32))
        x = x.astype(jnp.float32) + params["pos_embed"]  # (b, n, d)
        vec = self.vec(spec, params, t, cond["y"])
        # Going back, the gradient of vec is split over the batch and meets weights split over the width. XLA makes it whole
        # in between, with a warning if it is not told to; it is small.
        vec = place(vec, None, None)
        rope = grid_rope(spec.sizes) if spec.option("rope") else None
        return {"img": place(x, *STREAM)}, Context(place(vec, "batch", "width"), rope=rope)

    def vec(self, spec: ModelSpec, params: Params, t: jax.Array, y: jax.Array) -> jax.Array:
        """The conditioning vector (b, d): embeddings of t (b,) and of y (b,), added."""
        c = call(TimestepEmbed(spec.width, compat_of(spec)), params["t_embedder"], t)
        return c + call(LabelEmbed(spec.classes, spec.width), params["y_embedder"], y)

    def head(
        self, spec: ModelSpec, params: Params, state: State, context: Context, dtype: DTypeLike | None
    ) -> jax.Array:
        """The output (b, h, w, out_channels): predicted noise, then the variance channels; of a flow the velocity alone."""
        out = call(self._final(spec, dtype), params["final"], state["img"], context.vec)
        out = out[..., : spec.option("channels")] if spec.prediction.is_flow else out  # SiT's second half has no meaning
        return place(out, "batch", None, None, None)

    def _final(self, spec: ModelSpec, dtype: DTypeLike | None, name: str | None = None) -> FinalLayer:
        rms = spec.option("final_rms", False)
        return FinalLayer(spec.option("patch"), spec.out_channels, spec.sizes.grid, dtype, rms=rms, name=name)

    def vectors(self, spec: ModelSpec, params: Params, count: int) -> jax.Array:
        """About `count` conditioning vectors (s, d): times evenly spread, at each of them classes in turn."""
        classes = min(spec.classes + 1, max(1, round(math.sqrt(count))))
        times = -(-count // classes)
        t, y = jnp.meshgrid(
            time_at(spec.prediction, (jnp.arange(times) + 0.5) / times),
            jnp.round(jnp.linspace(0, spec.classes, classes)), indexing="ij",
        )  # fmt: skip
        return self.vec(spec, params, t.reshape(-1), y.reshape(-1).astype(jnp.int32))

    def cost(self, spec: ModelSpec) -> FrameCost:
        """Parameters and FLOPs outside the blocks, in closed form."""
        d, n = spec.width, spec.tokens
        numbers = spec.option("patch") ** 2 * spec.option("channels")
        out = spec.option("patch") ** 2 * spec.out_channels
        embedders = numbers * d + d + FREQUENCIES * d + d + d * d + d + (spec.classes + 1) * d
        final = d * 2 * d + 2 * d + d * out + out + d * spec.option("final_rms", False)
        embed = 2 * n * d * numbers + 2 * d * (FREQUENCIES + d)
        return FrameCost(embedders + final, n * d, embed, 2 * n * d * out + 4 * d * d)

    def override(self, spec: ModelSpec, overrides: Mapping[str, Option]) -> ModelSpec:
        """`spec` with what the user adds to a file (`graftax.backbones.dit.overrides`)."""
        return override(spec, overrides)


BACKBONE = DiT()
