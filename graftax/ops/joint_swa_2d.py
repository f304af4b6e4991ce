"""Joint attention in a window of the image grid, with the text seen by all."""

from __future__ import annotations

from typing import ClassVar

import jax

from graftax.ops.joint import JointMHA
from graftax.ops.tiles import near_and_text, window_on
from graftax.ops.window_2d import check_window, window_pairs
from graftax.spec import OpSpec, Sizes


class JointSWA2D(JointMHA):
    """`JointMHA` whose image queries look at a (2 window + 1) x (2 window + 1) window of the grid, clipped at its borders,
    and at the whole text; those of the text look at everything: `JointClear` (arXiv 2412.16112) with a square for the disc.
    With the same weights.

    Attributes:
        window: how far an image token sees, in rows and in columns.
    """

    window: int = 2

    kind = "joint_swa_2d"
    moved: ClassVar[bool] = False

    @property
    def needs_grid(self) -> bool:
        return True

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return near_and_text(q, k, v, window_on(self.sizes.grid, self.window, moved=self.moved))

    def pairs(self) -> int:
        return window_pairs(self.sizes, self.window, self.asking)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        super().check(op, sizes)
        check_window(op, sizes)


class JointNatten(JointSWA2D):
    """`JointSWA2D` whose windows move inwards at the image's borders, so that every token of it sees equally many, as in
    `Natten` (arXiv 2204.07143, Section 3).
    """

    kind = "joint_natten"
    moved = True
