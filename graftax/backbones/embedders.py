"""What surrounds the blocks of many backbones: patches in, positions, times, patches out. The semantics are those of
Facebook's DiT (arXiv 2212.09748)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike

from graftax.blocks.base import modulate, vectors
from graftax.ops.norms import layer_norm, rms_norm

FREQUENCIES = 256
"""Width of the sinusoidal timestep features."""


def sinusoids(places: np.ndarray, width: int) -> np.ndarray:
    """[sin | cos] of places (n,) on one axis: (n, width / 2) float32, frequencies 10000^(-4 i / width)."""
    omega = 1 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    angles = np.outer(places, omega)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def sinusoidal_positions(width: int, grid: tuple[int, int]) -> np.ndarray:
    """The fixed 2-D sine-cosine table of DiT, (1, rows * columns, width) float32, tokens in raster order.

    The first half of the channels encodes the column, the second the row; each half is [sin | cos] of its frequencies.
    """
    rows, columns = (sinusoids(np.arange(side), width) for side in grid)
    return np.concatenate([np.tile(columns, (grid[0], 1)), np.repeat(rows, grid[1], axis=0)], axis=1)[None]


def placed_sinusoids(rows: np.ndarray, columns: np.ndarray, width: int) -> jax.Array:
    """`sinusoidal_positions` of tokens at any places `rows` (r,) and `columns` (s,) of a grid: (1, r s, width).

    Only `sinusoids` of the two axes are computed beforehand, so that large tables cost nothing where they are traced.
    """
    shape = (len(rows), len(columns), width // 2)
    along = jnp.broadcast_to(jnp.asarray(sinusoids(columns, width)), shape)
    down = jnp.broadcast_to(jnp.asarray(sinusoids(rows, width))[:, None], shape)
    return jnp.concatenate([along, down], axis=-1).reshape(1, -1, width)


def cropped(table: jax.Array, corner: tuple[int, int], grid: tuple[int, int]) -> jax.Array:
    """The positions of a `grid` of tokens in a square table of them, (1, side^2, d), from its row and column `corner` on:
    (1, rows * columns, d)."""
    (top, left), (rows, columns), side = corner, grid, math.isqrt(table.shape[1])
    square = table.reshape(1, side, side, -1)[:, top : top + rows, left : left + columns]
    return square.reshape(1, rows * columns, -1)


def timestep_features(t: jax.Array, compat: str = "dit", scale: float = 1.0, period: float = 10_000.0) -> jax.Array:
    """t (b,), `scale` t in [0, 1000] -> (b, 256): cosines then sines, in float32; frequencies period^(-i / 128), in
    diffusers / 127. Angles are rounded as scale * (t * frequency)."""
    half = FREQUENCIES // 2
    last = half - 1 if compat == "diffusers" else half
    # By numpy, rounded once: XLA's exp is off by an ulp here and there, which at t = 999 turns angles by up to 6e-5.
    exponents = -math.log(period) * np.arange(half, dtype=np.float32) / np.float32(last)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = scale * (t.astype(jnp.float32)[:, None] * frequencies)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class PatchEmbed(nn.Module):
    """(b, h, w, c) -> (b, n, d): a linear map of p x p patches, in raster order.

    Attributes:
        width: d.
        patch: p.
        dtype: matmul type.
    """

    width: int
    patch: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        p, d = self.patch, self.width
        # in_axis spans the whole patch, so that the fans are those of the flattened matrix, as in DiT.
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=(0, 1, 2), out_axis=3)
        kernel = self.param("kernel", init, (p, p, c, d), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (d,), jnp.float32)
        x = x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, p * p * c)
        x, kernel, bias = promote_dtype(x, kernel.reshape(p * p * c, d), bias, dtype=self.dtype)
        return x @ kernel + bias


class VectorEmbed(nn.Module):
    """Numbers (b, c) -> (b, d): a two-layer SiLU MLP in float32.

    Attributes:
        width: d.
    """

    width: int

    @nn.compact
    def __call__(self, numbers: jax.Array) -> jax.Array:
        init = nn.initializers.normal(0.02)
        x = nn.silu(nn.Dense(self.width, kernel_init=init, name="fc1")(numbers.astype(jnp.float32)))
        return nn.Dense(self.width, kernel_init=init, name="fc2")(x)


class FlatPatchEmbed(nn.Module):
    """(b, h, w, c) -> (b, n, d): as `PatchEmbed`, of a patch's numbers in a row, [channel, row, column], where the authors
    have a linear layer in place of a convolution.

    Attributes:
        width: d.
        patch: p.
        dtype: matmul type.
    """

    width: int
    patch: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        linear = nn.Dense(self.width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
        nn.share_scope(self, linear)  # its kernel (c p p, d) and bias are this module's own
        return linear(packed(x, self.patch))


class TimestepEmbed(nn.Module):
    """t (b,) -> (b, d): sinusoids, then `VectorEmbed`; all in float32.

    Attributes:
        width: d.
        compat: as in `timestep_features`.
        scale: likewise.
        period: likewise.
    """

    width: int
    compat: str = "dit"
    scale: float = 1.0
    period: float = 10_000.0

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        embed = VectorEmbed(self.width)
        nn.share_scope(self, embed)
        return embed(timestep_features(t, self.compat, self.scale, self.period))


def packed(x: jax.Array, patch: int) -> jax.Array:
    """Images (b, h, w, c) as tokens (b, n, c p p) of p x p pixels in raster order, the channel slowest, as in Flux."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(b, -1, c * patch * patch)


def unpacked(x: jax.Array, patch: int, grid: tuple[int, int]) -> jax.Array:
    """Inverse of `packed`: tokens (b, n, c p p) on a grid of rows and columns -> (b, h, w, c)."""
    (rows, columns), channels = grid, x.shape[-1] // patch**2
    x = x.reshape(len(x), rows, columns, channels, patch, patch).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(len(x), rows * patch, columns * patch, channels)


class FinalLayer(nn.Module):
    """Tokens (b, n, d) and conditioning (b, d) or (b, n, d) -> image (b, h, w, channels); starts at zero output.

    Attributes:
        patch: p.
        channels: of the image.
        grid: rows and columns of tokens.
        dtype: matmul type.
        table: shift and scale are the conditioning plus a row each of a table (2, d), as in PixArt (arXiv 2310.00426),
            and no linear map of it.
        packed: a token's numbers are in the order of `packed`.
        rms: its norm is an RMSNorm with a scale, as in LightningDiT, and no LayerNorm without one.
    """

    patch: int
    channels: int
    grid: tuple[int, int]
    dtype: DTypeLike | None = None
    table: bool = False
    packed: bool = False
    rms: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:
        p, d = self.patch, x.shape[-1]
        zeros = nn.initializers.zeros
        if self.table:
            shift_scale = jnp.concatenate([c, c], axis=-1) + self.param("table", zeros, (2, d), jnp.float32).reshape(-1)
        else:
            shift_scale = nn.Dense(2 * d, dtype=self.dtype, kernel_init=zeros, name="adaln")(nn.silu(c))
        shift, scale = vectors(shift_scale, 2)  # (b, 1, d) or (b, n, d)
        x = rms_norm(x) * self.param("scale", nn.initializers.ones, (d,), jnp.float32) if self.rms else layer_norm(x)
        x = modulate(x, shift, scale)
        x = nn.Dense(p * p * self.channels, dtype=self.dtype, kernel_init=zeros, name="linear")(x)  # (b, n, p p c)
        return unpacked(x.astype(jnp.float32), p, self.grid) if self.packed else image_of(x, self.grid, p)


def image_of(x: jax.Array, grid: tuple[int, int], patch: int) -> jax.Array:
    """Patches (b, n, p p c), numbers in the order [row, column, channel] -> the image (b, h, w, c) float32."""
    (rows, columns), p = grid, patch
    x = x.astype(jnp.float32).reshape(len(x), rows, columns, p, p, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), rows * p, columns * p, -1)
