"""Attention in a disc around every image token, with any text seen by all: CLEAR (arXiv 2412.16112)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from graftax.errors import BadInput
from graftax.ops.attention import DENSE_BELOW, MHA, attend, full_attention
from graftax.ops.base import Overrides, Shapes, linear_keys
from graftax.ops.target import target
from graftax.ops.window_2d import TILE, Side, padded, squares
from graftax.spec import OpSpec, Option, Sizes


def disc_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, grid: tuple[int, int], radius: int, tile: int = TILE
) -> jax.Array:
    """Attention of every image token to the image tokens nearer than `radius` on the grid, and to all of a text.

    q (b, n, h, k), in raster order on a `grid` of rows x columns; k and v (b, m + n, h, k), those of the m tokens of text
    first -> (b, n, h, k). A token at (i, j) sees those at (i', j') with (i - i')^2 + (j - j')^2 < radius^2, as in the
    mask of CLEAR's authors. Queries are taken in tiles of s x s, one strip of tiles after the other, on the way back
    too; a tile meets (s + 2 radius - 2)^2 + m keys. A strip's products are all that is held beside the arguments, so that
    memory is linear in n. Where one tile would meet the whole image, and that is small, it is dense attention with a mask.
    """
    text = k.shape[1] - q.shape[1]
    radius = min(radius, sum(grid))  # sees all already, and its square is an int32
    rows, columns = (Side(length, min(tile, length), min(radius, length) - 1) for length in grid)
    met = (rows.size + 2 * rows.window) * (columns.size + 2 * columns.window)
    if met >= q.shape[1] and q.shape[1] * k.shape[1] < DENSE_BELOW[target()]:
        return attend(q, k, v, _with_text(disc_mask(grid, radius), text))
    return _strips(q, k, v, rows, columns, radius, text)


def disc_mask(grid: tuple[int, int], radius: int) -> jax.Array:
    """(n, n): True where tokens of a `grid` of rows x columns are nearer than `radius`."""
    row, column = jnp.divmod(jnp.arange(grid[0] * grid[1]), grid[1])
    return (row[:, None] - row) ** 2 + (column[:, None] - column) ** 2 < radius**2


def _with_text(mask: jax.Array, text: int) -> jax.Array:
    """(..., keys) -> (..., text + keys): True for every token of the text."""
    return jnp.pad(mask, [*[(0, 0)] * (mask.ndim - 1), (text, 0)], constant_values=True)


def _strips(
    q: jax.Array, k: jax.Array, v: jax.Array, rows: Side, columns: Side, radius: int, text: int
) -> jax.Array:  # fmt: skip
    """`disc_attention` strip by strip."""
    b, n, h, width = q.shape
    image = (b, rows.length, columns.length, h, width)
    q = padded(q.reshape(image), rows, columns, margin=False)
    texts = [a[:, None, :text] for a in (k, v)]  # (b, 1, m, h, k)
    images = [padded(a[:, text:].reshape(image), rows, columns, margin=True) for a in (k, v)]
    inside = rows.offsets()[:, None, :, None] ** 2 + columns.offsets()[:, None] ** 2 < radius**2

    def cut(a: jax.Array, top: jax.Array, *, margin: bool) -> jax.Array:
        strip = jax.lax.dynamic_slice_in_dim(a, top, rows.size + 2 * rows.window * margin, axis=1)
        return squares(strip, columns, margin=margin)  # (b, tiles, tokens, h, k)

    @jax.checkpoint
    def strip(one: tuple[jax.Array, jax.Array]) -> jax.Array:
        top, near = one  # (), and (s, s + 2 window): rows that are there
        words = [jnp.broadcast_to(a, (b, columns.tiles, text, h, width)) for a in texts]
        parts = [cut(a, top, margin=True) for a in images]
        k, v = (jnp.concatenate(both, axis=2) for both in zip(words, parts, strict=True))
        mask = inside & near[:, None, :, None] & columns.near()[:, None, :, None]  # (tiles, s, s, high, wide)
        mask = mask.reshape(columns.tiles, 1, rows.size * columns.size, -1)
        return attend(cut(q, top, margin=False), k, v, _with_text(mask, text))

    tops = jnp.arange(0, rows.tiles * rows.size, rows.size)
    out = jax.lax.map(strip, (tops, rows.near()))  # (strips, b, tiles, s s, h, k)
    out = out.reshape(rows.tiles, b, columns.tiles, rows.size, columns.size, h, width).transpose(1, 0, 3, 2, 4, 5, 6)
    out = out.reshape(b, rows.tiles * rows.size, columns.tiles * columns.size, h, width)
    return out[:, : rows.length, : columns.length].reshape(b, n, h, width)


def disc_and_text(q: jax.Array, k: jax.Array, v: jax.Array, grid: tuple[int, int], radius: int) -> jax.Array:
    """`disc_attention` for the image's queries; those of a text before them see everything.

    k and v (b, m + n, h, k); q (b, m + n, h, k), or the image's alone (b, n, h, k) -> the same shape as q.
    """
    text = q.shape[1] - grid[0] * grid[1]
    image = disc_attention(q[:, text:], k, v, grid, radius)
    return jnp.concatenate([full_attention(q[:, :text], k, v), image], axis=1) if text else image


def pairs_seen(sizes: Sizes, radius: int, asking: int) -> int:
    """Pairs of a query and a key in `disc_and_text`; `asking`: queries, m + n or n."""
    m, n = sizes.text, sizes.image
    return (asking - n) * (m + n) + n * m + visible_pairs(sizes.grid, radius)


def check_disc(op: OpSpec, sizes: Sizes) -> None:
    """Raise `BadInput` where there is no disc, or no image for it."""
    if op.option("radius") < 1:
        raise BadInput(f"{op.kind} radius: got {op.option('radius')}, expected 1 or more")
    if not sizes.image:
        raise BadInput(f"{op.kind}: got {sizes.text} tokens of text and no image, expected an image")


def visible_pairs(grid: tuple[int, int], radius: int) -> int:
    """Pairs of tokens of a `grid` of rows x columns that are nearer than `radius`, both orders and each with itself."""
    rows, columns = (np.arange(1 - length, length) for length in grid)
    count = (grid[0] - abs(rows))[:, None] * (grid[1] - abs(columns))  # of pairs this far apart
    return int(count[rows[:, None] ** 2 + columns**2 < radius**2].sum())


class Clear(MHA):
    """`disc_attention` for the image; tokens of a text before it see everything. With the same weights as `MHA`.

    In PyTorch files its weights have a name of their own, so that they are never taken for another attention's; the
    radius is not in the tensors.

    Attributes:
        radius: of the disc, in tokens (the paper: 8, 16 and 32).
    """

    radius: int = 8

    kind = "clear"
    torch_keys = linear_keys("qkv", "disc_qkv") + linear_keys("proj", "out_proj")

    @property
    def needs_grid(self) -> bool:
        return True

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return disc_and_text(q, k, v, self.sizes.grid, self.radius)

    def pairs(self) -> int:
        return pairs_seen(self.sizes, self.radius, self.tokens)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        check_disc(op, sizes)

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        if super().recognise(shapes, overrides) is None:
            return None
        return {"radius": overrides.get("radius", cls.options()["radius"])}
