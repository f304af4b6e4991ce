"""Joint attention in a disc around every image token, with the text seen by all: CLEAR in a block of two streams."""

from __future__ import annotations

import jax

from graftax.ops.clear import check_disc, visible_pairs
from graftax.ops.joint import JointMHA
from graftax.ops.tiles import disc_on, near_and_text, pairs_seen
from graftax.spec import OpSpec, Sizes


class JointClear(JointMHA):
    """`JointMHA` whose image queries look at image tokens nearer than `radius` on the grid, and at the whole text; those of
    the text look at everything (arXiv 2412.16112, whose authors have it so in Flux). With the same weights.

    Attributes:
        radius: of the disc, in tokens (the paper: 8, 16 and 32).
    """

    radius: int = 8

    kind = "joint_clear"

    @property
    def needs_grid(self) -> bool:
        return True

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return near_and_text(q, k, v, disc_on(self.sizes.grid, self.radius))

    def pairs(self) -> int:
        return pairs_seen(self.sizes, visible_pairs(self.sizes.grid, self.radius), self.asking)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        super().check(op, sizes)
        check_disc(op, sizes)
