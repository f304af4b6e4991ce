"""Attention of image tokens to those near them on the grid, and to all of a text: never an n x n matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from graftax.errors import BadInput
from graftax.ops.attention import DENSE_BELOW, attend, full_attention
from graftax.ops.pallas.plan import takes
from graftax.ops.target import target
from graftax.spec import Sizes

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

    def sees(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """Where tokens at the places `query` may look at those at `key`, any of which may lie outside: broadcasts."""
        return (abs(query - key) <= self.window) & (key >= 0) & (key < self.length)

    def near(self) -> jax.Array:
        """(tiles, size, size + 2 window): `sees` for every tile's tokens and all that it meets."""
        start = self.size * jnp.arange(self.tiles)[:, None, None]
        key = start + jnp.arange(self.size + 2 * self.window) - self.window
        return self.sees(start + jnp.arange(self.size)[:, None], key)

    def reach(self, size: int) -> int:
        """How far what the tokens of tiles of `size` see stands out of their tile."""
        return self.window

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

    def sees(self, query: jax.Array, key: jax.Array) -> jax.Array:
        first = jnp.clip(query - self.seen // 2, 0, self.length - self.seen)
        return (key >= first) & (key < first + self.seen)

    def reach(self, size: int) -> int:
        starts = np.arange(0, self.length, size)
        first, last = (
            np.clip(at - self.seen // 2, 0, self.length - self.seen)
            for at in (starts, np.minimum(starts + size, self.length) - 1)
        )
        return int(max(*(starts - first), *(last + self.seen - starts - size), 0))


def moved_side(length: int, tile: int, window: int) -> MovedSide:
    """A side of `length` tokens, its windows 2 `window` + 1 of them; what a tile meets reaches as far as any window does."""
    side = MovedSide(length, min(tile, length), window, min(2 * window + 1, length))
    return replace(side, window=side.reach(side.size))


@dataclass(frozen=True)
class Near:
    """Which tokens of the image each of them sees.

    Attributes:
        rows: how far it sees up and down.
        columns: to the left and right.
        radius: what it sees besides is nearer than this; None: all of it, a square.
    """

    rows: Side
    columns: Side
    radius: int | None = None

    @property
    def tokens(self) -> int:
        """Of the image, n."""
        return self.rows.length * self.columns.length

    @property
    def met(self) -> int:
        """Image tokens that a tile of queries meets."""
        return (self.rows.size + 2 * self.rows.window) * (self.columns.size + 2 * self.columns.window)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the image."""
        return self.rows.length, self.columns.length

    def reach(self, tile: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns by which what the tokens of a tile of rows x columns see stands out of it."""
        return self.rows.reach(tile[0]), self.columns.reach(tile[1])

    def sees(self, row: jax.Array, column: jax.Array, key_row: jax.Array, key_column: jax.Array) -> jax.Array:
        """Whether a token sees another, by their places: broadcasts."""
        both = self.rows.sees(row, key_row) & self.columns.sees(column, key_column)
        return both if self.radius is None else both & ((row - key_row) ** 2 + (column - key_column) ** 2 < self.radius**2)

    def inside(self, down: jax.Array, across: jax.Array) -> jax.Array:
        """Where those that lie `down` (q, k) rows and `across` (p, l) columns away are near enough: to (q, p, k, l)."""
        down, across = down[:, None, :, None], across[:, None]
        return jnp.asarray(True) if self.radius is None else down**2 + across**2 < self.radius**2

    def mask(self) -> jax.Array:
        """(n, n): True where a token may look."""
        down, across = (jnp.arange(side.length) for side in (self.rows, self.columns))
        rows, columns = self.rows.sees(down[:, None], down), self.columns.sees(across[:, None], across)
        near = self.inside(down - down[:, None], across - across[:, None])
        return (near & rows[:, None, :, None] & columns[:, None]).reshape(self.tokens, self.tokens)


def window_on(grid: tuple[int, int], window: int, tile: int = TILE, moved: bool = False) -> Near:
    """What is at most `window` rows and `window` columns away on a `grid` of rows x columns, clipped at the image's borders.
    `moved`: windows at the borders move inwards instead (neighbourhood attention, arXiv 2204.07143, Section 3), for which
    tiles that stand over the border meet more."""
    if moved:
        rows, columns = (moved_side(length, tile, window) for length in grid)
    else:
        rows, columns = (Side(length, min(tile, length), min(window, length - 1)) for length in grid)
    return Near(rows, columns)


def disc_on(grid: tuple[int, int], radius: int, tile: int = TILE) -> Near:
    """Tokens (i', j') that (i, j) sees with (i - i')^2 + (j - j')^2 < radius^2, as in the mask of CLEAR's authors."""
    radius = min(radius, sum(grid))  # sees all already, and its square is an int32
    rows, columns = (Side(length, min(tile, length), min(radius, length) - 1) for length in grid)
    return Near(rows, columns, radius)


def near_attention(q: jax.Array, k: jax.Array, v: jax.Array, near: Near) -> jax.Array:
    """Attention of every image token to those `near` it, and to all of a text.

    q (b, n, h, k), in raster order; k and v (b, m + n, h, k), those of the m tokens of text first -> (b, n, h, k). Queries
    are taken in tiles; a tile of s x s meets m keys and those of (s + 2 window)^2 tokens, so that memory is linear in n. On
    TPUs the same by a kernel.

    Squares without a text, which are small, take all tiles at once: on small images that is faster. Others take one strip of
    tiles after the other, on the way back too, and hold a strip's products beside the arguments; where one tile would meet
    the whole image, and that is small, they are dense attention with a mask.
    """
    if takes(q, k, near):
        from graftax.ops.pallas.grid import window_attention

        return window_attention(q, k, v, near)
    text = k.shape[1] - q.shape[1]
    if not text and near.radius is None:
        return _at_once(q, k, v, near)
    if near.met >= q.shape[1] and q.shape[1] * k.shape[1] < DENSE_BELOW[target()]:
        return attend(q, k, v, _with_text(near.mask(), text))
    return _strips(q, k, v, near, text)


def near_and_text(q: jax.Array, k: jax.Array, v: jax.Array, near: Near) -> jax.Array:
    """`near_attention` for the image's queries; those of a text before them see everything.

    k and v (b, m + n, h, k); q (b, m + n, h, k), or the image's alone (b, n, h, k) -> the same shape as q.
    """
    text = q.shape[1] - near.tokens
    image = near_attention(q[:, text:], k, v, near)
    return jnp.concatenate([full_attention(q[:, :text], k, v), image], axis=1) if text else image


def pairs_seen(sizes: Sizes, near: int, asking: int) -> int:
    """Pairs of a query and a key in `near_and_text`. `near`: those of two image tokens; `asking`: queries, m + n or n."""
    m, n = sizes.text, sizes.image
    return (asking - n) * (m + n) + n * m + near


def check_image(kind: str, sizes: Sizes) -> None:
    """Raise `BadInput` where there is a text and no image."""
    if not sizes.image:
        raise BadInput(f"{kind}: got {sizes.text} tokens of text and no image, expected an image")


def _with_text(mask: jax.Array, text: int) -> jax.Array:
    """(..., keys) -> (..., text + keys): True for every token of the text."""
    return jnp.pad(mask, [*[(0, 0)] * (mask.ndim - 1), (text, 0)], constant_values=True)


def _at_once(q: jax.Array, k: jax.Array, v: jax.Array, near: Near) -> jax.Array:
    """`near_attention` in squares and without a text, in one batch of tiles."""
    rows, columns = near.rows, near.columns
    image = (q.shape[0], *near.grid, *q.shape[2:])
    queries = _tiles(q.reshape(image), rows, columns, margin=False)
    keys, values = (_tiles(a.reshape(image), rows, columns, margin=True) for a in (k, v))
    mask = rows.near()[:, None, :, None, :, None] & columns.near()[None, :, None, :, None, :]
    mask = mask.reshape(rows.tiles * columns.tiles, 1, rows.size * columns.size, -1)
    return _image(attend(queries, keys, values, mask), near)


def _tiles(image: jax.Array, rows: Side, columns: Side, *, margin: bool) -> jax.Array:
    """(b, rows, columns, h, k) -> (b, tiles, tokens of a tile, h, k): with the window around, zeros outside the image."""
    b, _, _, h, width = image.shape
    image = _padded(image, rows, columns, margin=margin)
    tops = range(0, rows.tiles * rows.size, rows.size)
    high = rows.size + 2 * rows.window * margin
    strips = jnp.stack([image[:, i : i + high] for i in tops], axis=1)  # (b, tiles, high, columns, h, k)
    return _squares(strips, columns, margin=margin).reshape(b, rows.tiles * columns.tiles, -1, h, width)


def _image(tiles: jax.Array, near: Near) -> jax.Array:
    """Tiles (b, tiles, tokens of a tile, h, k) put together: (b, n, h, k)."""
    (b, _, _, h, width), rows, columns = tiles.shape, near.rows, near.columns
    out = tiles.reshape(b, rows.tiles, columns.tiles, rows.size, columns.size, h, width).swapaxes(2, 3)
    out = out.reshape(b, rows.tiles * rows.size, columns.tiles * columns.size, h, width)
    return out[:, : rows.length, : columns.length].reshape(b, near.tokens, h, width)


def _strips(q: jax.Array, k: jax.Array, v: jax.Array, near: Near, text: int) -> jax.Array:
    """`near_attention` strip by strip."""
    b, _, h, width = q.shape
    rows, columns = near.rows, near.columns
    image = (b, rows.length, columns.length, h, width)
    q = _padded(q.reshape(image), rows, columns, margin=False)
    texts = [a[:, None, :text] for a in (k, v)]  # (b, 1, m, h, k)
    images = [_padded(a[:, text:].reshape(image), rows, columns, margin=True) for a in (k, v)]
    inside = near.inside(rows.offsets(), columns.offsets())

    def cut(a: jax.Array, top: jax.Array, *, margin: bool) -> jax.Array:
        strip = jax.lax.dynamic_slice_in_dim(a, top, rows.size + 2 * rows.window * margin, axis=1)
        return _squares(strip, columns, margin=margin)  # (b, tiles, tokens, h, k)

    @jax.checkpoint
    def strip(one: tuple[jax.Array, jax.Array]) -> jax.Array:
        top, there = one  # (), and (s, s + 2 window): rows that are there
        words = [jnp.broadcast_to(a, (b, columns.tiles, text, h, width)) for a in texts]
        parts = [cut(a, top, margin=True) for a in images]
        k, v = (jnp.concatenate(both, axis=2) for both in zip(words, parts, strict=True))
        mask = inside & there[:, None, :, None] & columns.near()[:, None, :, None]  # (tiles, s, s, high, wide)
        mask = mask.reshape(columns.tiles, 1, rows.size * columns.size, -1)
        return attend(cut(q, top, margin=False), k, v, _with_text(mask, text))

    tops = jnp.arange(0, rows.tiles * rows.size, rows.size)
    out = jax.lax.map(strip, (tops, rows.near()))  # (strips, b, tiles, s s, h, k)
    return _image(jnp.moveaxis(out, 0, 1).reshape(b, rows.tiles * columns.tiles, -1, h, width), near)


def _padded(image: jax.Array, rows: Side, columns: Side, *, margin: bool) -> jax.Array:
    """(b, rows, columns, h, k) with zeros to fill the last tiles, and `margin` for the windows around the first and last."""
    around = [side.window * margin for side in (rows, columns)]
    edges = [(m, m + side.tiles * side.size - side.length) for m, side in zip(around, (rows, columns), strict=True)]
    return jnp.pad(image, ((0, 0), *edges, (0, 0), (0, 0)))


def _squares(strips: jax.Array, columns: Side, *, margin: bool) -> jax.Array:
    """Strips (..., high, padded columns, h, k) cut into tiles, (..., tiles, high wide, h, k)."""
    lefts = range(0, columns.tiles * columns.size, columns.size)
    wide = columns.size + 2 * columns.window * margin
    cut = jnp.stack([strips[..., j : j + wide, :, :] for j in lefts], axis=-5)  # (..., tiles, high, wide, h, k)
    return cut.reshape(*cut.shape[:-4], -1, *cut.shape[-2:])
