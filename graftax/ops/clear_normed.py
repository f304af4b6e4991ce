"""Attention in a disc, with normed queries and keys and rotary positions: CLEAR in blocks of one sequence."""

from __future__ import annotations

import jax

from graftax.ops.attention_normed import MHANormed
from graftax.ops.base import Overrides, Shapes
from graftax.ops.clear import check_disc, visible_pairs
from graftax.ops.tiles import disc_on, near_and_text, pairs_seen
from graftax.spec import OpSpec, Option, Sizes


class ClearNormed(MHANormed):
    """`MHANormed` in which image tokens look at those nearer than `radius` on the grid, and at the whole text before them,
    which sees everything (arXiv 2412.16112, whose authors have it so in Flux's single blocks). With the same weights.

    Attributes:
        radius: of the disc, in tokens (the paper: 8, 16 and 32).
    """

    radius: int = 8

    kind = "clear_normed"
    torch_keys = ()

    @property
    def needs_grid(self) -> bool:
        return True

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return near_and_text(q, k, v, disc_on(self.sizes.grid, self.radius))

    def pairs(self) -> int:
        return pairs_seen(self.sizes, visible_pairs(self.sizes.grid, self.radius), self.tokens)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        super().check(op, sizes)
        check_disc(op, sizes)

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        """Never: no file tells it from `MHANormed`."""
        return None
