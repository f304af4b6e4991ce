"""The decoder behind MaskDiT's blocks: DiT blocks of another width, which belong to the frame and cannot be edited."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax.backbones.dit.variants import around
from graftax.backbones.embedders import sinusoidal_positions
from graftax.blocks import Context, block_kind, build, resolve
from graftax.blocks.base import STREAM, modulate, vectors
from graftax.models.routing import fill, places_of
from graftax.ops.modulation import linear_cost
from graftax.ops.norms import layer_norm
from graftax.ops.placement import place
from graftax.spec import ModelSpec, Prediction, Sizes, op

PATHS = "decoder/{:02d}"
"""Where a block's parameters are."""


def decoder_of(spec: ModelSpec) -> ModelSpec:
    """The decoder as if it were a model by itself: its sizes and blocks."""
    width, heads = spec.option("decoder_width"), spec.option("decoder_heads")
    sizes = Sizes(width, heads, width // heads, spec.sizes.grid)
    block = resolve("dit", sizes, {**around(), "mixer": op("mha"), "mlp": op("mlp")})
    return ModelSpec("dit", sizes, (("patch", 1), ("channels", 1)), Prediction(), (block,) * spec.option("decoder_depth"))


class Decoder(nn.Module):
    """Tokens (b, n, d) and their conditioning (b, d) -> tokens (b, n, decoder_width), float32.

    A norm with shift and scale, a linear map, positions, then DiT blocks whose modulations read the model's own `vec`. Of
    tokens (b, k, d) alone that belong in places `kept` (b, k), the others are `mask_token` before positions are added.

    Attributes:
        spec: of the decoder (`decoder_of`).
        dtype: matmul type.
    """

    spec: ModelSpec
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, vec: jax.Array, kept: jax.Array | None = None) -> jax.Array:
        d, zeros = self.spec.width, nn.initializers.zeros
        shift_scale = nn.Dense(2 * x.shape[-1], dtype=self.dtype, kernel_init=zeros, name="adaln")(nn.silu(vec))
        linear = nn.Dense(d, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="linear")
        places = self.param("pos_embed", lambda _: jnp.asarray(sinusoidal_positions(d, self.spec.sizes.grid)))
        token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, d), jnp.float32)
        x = linear(modulate(layer_norm(x), *vectors(shift_scale, 2))).astype(jnp.float32)
        if kept is not None:
            at = places_of(kept, self.spec.tokens)
            x = place(fill(x, at) + jnp.where(at[2][..., None], 0, token), *STREAM)
        x = x + places
        for i in range(self.spec.depth):
            x = DecoderBlock(self.spec, self.dtype, name=f"{i:02d}")(x, vec)
        return x


class DecoderBlock(nn.Module):
    """One of its blocks: (b, n, d) -> (b, n, d).

    Attributes:
        spec: of the decoder.
        dtype: matmul type.
    """

    spec: ModelSpec
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, vec: jax.Array) -> jax.Array:
        block, context = self.spec.blocks[0], Context(vec)
        kind, run = block_kind(block.kind), dict[str, Any]()
        for slot in kind.slots:
            operator = slot.build(block[slot.name], self.spec.sizes, self.dtype, "dit", name=slot.name)
            run[slot.name] = functools.partial(operator, **{name: getattr(context, name) for name in operator.reads})
        return kind.body(run, {"img": x}, context, lambda _, value: value)["img"]


def decoder_cost(spec: ModelSpec) -> tuple[int, int, int]:
    """Parameters of a model's decoder, those of its table of positions, and FLOPs on one image."""
    inner, d = decoder_of(spec), spec.width
    costs = [build(inner, block.kind, slot, block[slot]).cost()
             for block in inner.blocks for slot in ("mixer", "mlp")]  # fmt: skip
    costs += [linear_cost(d, 6 * inner.width)] * inner.depth + [linear_cost(d, 2 * d)]
    linear = d * inner.width + inner.width
    trained = sum(cost.params for cost in costs) + linear + inner.width
    return trained, spec.tokens * inner.width, sum(cost.flops for cost in costs) + 2 * spec.tokens * d * inner.width
