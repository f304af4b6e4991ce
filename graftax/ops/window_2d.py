"""Attention within a square window of the image grid: unlike the raster-order window it sees neighbours above and below."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from graftax.errors import BadInput
from graftax.ops.attention import MHA, attend
from graftax.ops.base import linear_keys
from graftax.ops.window import band_mask
from graftax.spec import OpSpec, Option

TILE = 8
"""Side of the squares of queries handled together: with gradients the fastest of 2, 4, 8, 16 on CPU (window 2)."""


def grid_attention(q: jax.Array, k: jax.Array, v: jax.Array, window: int, tile: int = TILE) -> jax.Array:
    """Attention of every token to those at most `window` rows and `window` columns away, clipped at the image's borders.

    q, k, v (b, n, h, k) -> (b, n, h, k), n a square number of tokens in raster order. Queries are taken in tiles of s x s,
    each of which meets (s + 2 window)^2 keys, so memory is n (s + 2 window)^2 per head. Equal to dense attention under
    that mask (neighbourhood attention, arXiv 2204.07143, Section 3, but with windows cut off at the borders, not moved).
    """
    b, n, h, width = q.shape
    side = math.isqrt(n)
    size, window = min(tile, side), min(window, side - 1)
    tiles = -(-side // size)
    q = _tiles(q.reshape(b, side, side, h, width), tiles, size, 0)
    k, v = (_tiles(a.reshape(b, side, side, h, width), tiles, size, window) for a in (k, v))
    near = band_mask(side, window, tiles, size)[:, 0]  # (tiles, size, size + 2 window), of rows and of columns alike
    mask = near[:, None, :, None, :, None] & near[None, :, None, :, None, :]
    out = attend(q, k, v, mask.reshape(tiles**2, 1, size**2, -1))  # (b, tiles^2, size^2, h, k)
    out = out.reshape(b, tiles, tiles, size, size, h, width).swapaxes(2, 3)
    out = out.reshape(b, tiles * size, tiles * size, h, width)
    return out[:, :side, :side].reshape(b, n, h, width)


def _tiles(grid: jax.Array, tiles: int, size: int, margin: int) -> jax.Array:
    """(b, g, g, h, k) -> (b, tiles^2, (size + 2 margin)^2, h, k): squares with a margin around, zeros outside the image."""
    b, side, _, h, width = grid.shape
    edge, reach = (margin, margin + tiles * size - side), size + 2 * margin
    grid = jnp.pad(grid, ((0, 0), edge, edge, (0, 0), (0, 0)))
    starts = range(0, tiles * size, size)
    rows = jnp.stack([grid[:, i : i + reach] for i in starts], axis=1)  # (b, tiles, reach, g, h, k)
    squares = jnp.stack([rows[:, :, :, i : i + reach] for i in starts], axis=2)  # (b, tiles, tiles, reach, reach, h, k)
    return squares.reshape(b, tiles**2, reach**2, h, width)


class SWA2D(MHA):
    """Attention in a (2 window + 1) x (2 window + 1) window of the image, with the same weights as `MHA`.

    No published model has it. In PyTorch files its weights have a name of their own, so that they are never taken for
    the raster-order `SWA`; like there, the window is not in the tensors.
    """

    window: int = 2

    kind = "swa_2d"
    torch_keys = linear_keys("qkv", "grid_qkv") + linear_keys("proj", "out_proj")

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return grid_attention(q, k, v, self.window)

    def attended(self) -> int:
        # As for `SWA`, a whole window for every query, also at the borders.
        return min(2 * self.window + 1, math.isqrt(self.tokens)) ** 2

    @classmethod
    def check(cls, op: OpSpec, width: int, tokens: int, num_heads: int) -> None:
        if op.option("window") < 1:
            raise BadInput(f"swa_2d window: got {op.option('window')}, expected 1 or more")
        if math.isqrt(tokens) ** 2 != tokens:
            raise BadInput(f"swa_2d: got {tokens} tokens, expected a square number")

    @classmethod
    def recognise(cls, shapes, overrides) -> dict[str, Option] | None:
        if super().recognise(shapes, overrides) is None:
            return None
        return {"window": overrides.get("window", cls.options()["window"])}
