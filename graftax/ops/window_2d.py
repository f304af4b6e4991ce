"""Attention within a square window of the image grid: unlike the raster-order window it sees neighbours above and below."""

from __future__ import annotations

import math
from typing import ClassVar

import jax

from graftax.errors import BadInput
from graftax.ops.attention import MHA
from graftax.ops.base import Overrides, Shapes, linear_keys
from graftax.ops.tiles import check_image, near_and_text, pairs_seen, window_on
from graftax.spec import OpSpec, Option, Sizes


def window_pairs(sizes: Sizes, window: int, asking: int) -> int:
    """Pairs of a query and a key in `near_and_text` of a square window; as for `SWA`, a whole window for every image query,
    also at the borders. `asking`: queries, m + n or n."""
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
        return near_and_text(q, k, v, window_on(self.sizes.grid, self.window, moved=self.moved))

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
