"""Attention within a square window of the image grid: unlike the raster-order window it sees neighbours above and below."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from graftax.errors import BadInput
from graftax.ops.attention import MHA, attend
from graftax.ops.base import Overrides, Shapes, linear_keys
from graftax.ops.pallas.plan import takes
from graftax.ops.tiles import Near, Side, check_image, near_and_text, padded, pairs_seen, squares, window_on
from graftax.spec import OpSpec, Option, Sizes


def grid_attention(q: jax.Array, k: jax.Array, v: jax.Array, near: Near) -> jax.Array:
    """`near_attention` in squares and without a text, all tiles at once: on small images faster than strip by strip.

    q, k, v (b, n, h, k) -> (b, n, h, k), tokens in raster order. A tile of s x s queries meets (s + 2 window)^2 keys, so
    memory is n (s + 2 window)^2 / s^2 of keys and n (s + 2 window)^2 of products per head. On TPUs the same by a kernel.
    """
    if takes(q, k, near):
        from graftax.ops.pallas.grid import window_attention

        return window_attention(q, k, v, near)
    b, n, h, width = q.shape
    rows, columns = near.rows, near.columns
    image = (b, rows.length, columns.length, h, width)
    q = _tiles(q.reshape(image), rows, columns, margin=False)
    k, v = (_tiles(a.reshape(image), rows, columns, margin=True) for a in (k, v))
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


def window_and_text(q: jax.Array, k: jax.Array, v: jax.Array, near: Near) -> jax.Array:
    """`near_and_text` of a square window; `grid_attention` where there is no text."""
    return near_and_text(q, k, v, near) if k.shape[1] > near.tokens else grid_attention(q, k, v, near)


def window_pairs(sizes: Sizes, window: int, asking: int) -> int:
    """Pairs of a query and a key in `window_and_text`; as for `SWA`, a whole window for every image query, also at the
    borders. `asking`: queries, m + n or n."""
    return pairs_seen(sizes, sizes.image * math.prod(min(2 * window + 1, side) for side in sizes.grid), asking)


def check_window(op: OpSpec, sizes: Sizes) -> None:
    """Raise `BadInput` where there is no window, or no image for it."""
    if op.option("window") < 1:
        raise BadInput(f"{op.kind} window: got {op.option('window')}, expected 1 or more")
    check_image(op.kind, sizes)


class SWA2D(MHA):
    """Attention in a (2 window + 1) x (2 window + 1) window of the image, clipped at its borders, with the same weights as
    `MHA`. Where a text stands before the image, image queries see all of it besides, and its own see everything, as in
    `Clear` (arXiv 2412.16112) with a square for the disc.

    No published model has it. In PyTorch files its weights have a name of their own, so that they are never taken for
    the raster-order `SWA`; like there, the window is not in the tensors.

    Attributes:
        window: how far an image token sees, in rows and in columns.
    """

    window: int = 2

    kind = "swa_2d"
    torch_keys = linear_keys("qkv", "grid_qkv") + linear_keys("proj", "out_proj")
    moved: ClassVar[bool] = False

    @property
    def needs_grid(self) -> bool:
        return True

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return window_and_text(q, k, v, window_on(self.sizes.grid, self.window, moved=self.moved))

    def pairs(self) -> int:
        return window_pairs(self.sizes, self.window, self.tokens)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        check_window(op, sizes)

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
    moved = True
