"""Attention within a square window of the image grid: unlike the raster-order window it sees neighbours above and below."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from graftax.errors import BadInput
from graftax.ops.attention import MHA, attend
from graftax.ops.base import Overrides, Shapes, check_grid, linear_keys
from graftax.ops.window import band_mask
from graftax.spec import OpSpec, Option, Sizes

TILE = 8
"""Side of the squares of queries handled together: with gradients the fastest of 2, 4, 8, 16 on CPU (window 2)."""


@dataclass(frozen=True)
class Side:
    """One side of the grid cut into tiles.

    Attributes:
        length: tokens along it.
        size: of a tile.
        window: how far a token sees.
    """

    length: int
    size: int
    window: int

    @property
    def tiles(self) -> int:
        """Number of tiles, the last one perhaps beyond the border."""
        return -(-self.length // self.size)

    def near(self) -> jax.Array:
        """(tiles, size, size + 2 window): True where a token may look."""
        return band_mask(self.length, self.window, self.tiles, self.size)[:, 0]

    def offsets(self) -> jax.Array:
        """(size, size + 2 window): how far behind a token, negative before it, each is that its tile meets."""
        return jnp.arange(self.size + 2 * self.window) - self.window - jnp.arange(self.size)[:, None]


@dataclass(frozen=True)
class MovedSide(Side):
    """A side along which all windows are equally long: at the borders they move inwards.

    Attributes:
        seen: tokens of a window.
    """

    seen: int

    def near(self) -> jax.Array:
        start = self.size * jnp.arange(self.tiles)[:, None, None]
        query, key = start + jnp.arange(self.size)[:, None], start + jnp.arange(self.size + 2 * self.window) - self.window
        first = jnp.clip(query - self.seen // 2, 0, self.length - self.seen)
        return (key >= first) & (key < first + self.seen)


def moved_side(length: int, tile: int, window: int) -> MovedSide:
    """A side of `length` tokens, its windows 2 `window` + 1 of them; what a tile meets reaches as far as any window does."""
    size, seen = min(tile, length), min(2 * window + 1, length)
    starts = np.arange(0, length, size)
    first, last = (np.clip(at - seen // 2, 0, length - seen) for at in (starts, np.minimum(starts + size, length) - 1))
    return MovedSide(length, size, int(max(*(starts - first), *(last + seen - starts - size), 0)), seen)


def grid_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, grid: tuple[int, int], window: int, tile: int = TILE, moved: bool = False
) -> jax.Array:
    """Attention of every token to those at most `window` rows and `window` columns away, clipped at the image's borders.

    q, k, v (b, n, h, k) -> (b, n, h, k), tokens in raster order on a `grid` of rows x columns. Queries are taken in tiles of
    s x s, each of which meets (s + 2 window)^2 keys, so memory is n (s + 2 window)^2 per head. Equal to dense attention
    under that mask. `moved`: windows at the borders move inwards instead (neighbourhood attention, arXiv 2204.07143,
    Section 3), for which tiles that stand over the border meet more.
    """
    b, n, h, width = q.shape
    rows, columns = (
        moved_side(length, tile, window) if moved else Side(length, min(tile, length), min(window, length - 1))
        for length in grid
    )
    q = _tiles(q.reshape(b, *grid, h, width), rows, columns, margin=False)
    k, v = (_tiles(a.reshape(b, *grid, h, width), rows, columns, margin=True) for a in (k, v))
    mask = rows.near()[:, None, :, None, :, None] & columns.near()[None, :, None, :, None, :]
    count, size = rows.tiles * columns.tiles, rows.size * columns.size
    out = attend(q, k, v, mask.reshape(count, 1, size, -1))  # (b, tiles, size, h, k)
    out = out.reshape(b, rows.tiles, columns.tiles, rows.size, columns.size, h, width).swapaxes(2, 3)
    out = out.reshape(b, rows.tiles * rows.size, columns.tiles * columns.size, h, width)
    return out[:, : rows.length, : columns.length].reshape(b, n, h, width)


def _tiles(image: jax.Array, rows: Side, columns: Side, *, margin: bool) -> jax.Array:
    """(b, rows, columns, h, k) -> (b, tiles, tokens of a tile, h, k): with the window around, zeros outside the image."""
    b, _, _, h, width = image.shape
    image = padded(image, rows, columns, margin=margin)
    tops = range(0, rows.tiles * rows.size, rows.size)
    high = rows.size + 2 * rows.window * margin
    strips = jnp.stack([image[:, i : i + high] for i in tops], axis=1)  # (b, tiles, high, columns, h, k)
    return squares(strips, columns, margin=margin).reshape(b, rows.tiles * columns.tiles, -1, h, width)


def padded(image: jax.Array, rows: Side, columns: Side, *, margin: bool) -> jax.Array:
    """(b, rows, columns, h, k) with zeros to fill the last tiles, and `margin` for the windows around the first and last."""
    around = [side.window * margin for side in (rows, columns)]
    edges = [(m, m + side.tiles * side.size - side.length) for m, side in zip(around, (rows, columns), strict=True)]
    return jnp.pad(image, ((0, 0), *edges, (0, 0), (0, 0)))


def squares(strips: jax.Array, columns: Side, *, margin: bool) -> jax.Array:
    """Strips (..., high, padded columns, h, k) cut into tiles, (..., tiles, high wide, h, k)."""
    lefts = range(0, columns.tiles * columns.size, columns.size)
    wide = columns.size + 2 * columns.window * margin
    cut = jnp.stack([strips[..., j : j + wide, :, :] for j in lefts], axis=-5)  # (..., tiles, high, wide, h, k)
    return cut.reshape(*cut.shape[:-4], -1, *cut.shape[-2:])


class SWA2D(MHA):
    """Attention in a (2 window + 1) x (2 window + 1) window of the image, with the same weights as `MHA`.

    No published model has it. In PyTorch files its weights have a name of their own, so that they are never taken for
    the raster-order `SWA`; like there, the window is not in the tensors.
    """

    window: int = 2

    kind = "swa_2d"
    torch_keys = linear_keys("qkv", "grid_qkv") + linear_keys("proj", "out_proj")

    @property
    def needs_grid(self) -> bool:
        return True

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return grid_attention(q, k, v, self.sizes.grid, self.window)

    def attended(self) -> int:
        # As for `SWA`, a whole window for every query, also at the borders.
        return math.prod(min(2 * self.window + 1, side) for side in self.sizes.grid)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        if op.option("window") < 1:
            raise BadInput(f"{cls.kind} window: got {op.option('window')}, expected 1 or more")
        check_grid(cls.kind, sizes)

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        if super().recognise(shapes, overrides) is None:
            return None
        return {"window": overrides.get("window", cls.options()["window"])}


class Natten(SWA2D):
    """Neighbourhood attention (arXiv 2204.07143, Section 3; NATTEN with a kernel of 2 window + 1): `SWA2D` whose windows
    move inwards at the image's borders, so that every token sees equally many. No bias of relative positions.
    """

    kind = "natten"
    torch_keys = linear_keys("qkv", "natten_qkv") + linear_keys("proj", "out_proj")

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return grid_attention(q, k, v, self.sizes.grid, self.window, moved=True)
