"""Attention in a window of the image grid, with normed queries and keys and rotary positions."""

from __future__ import annotations

from typing import ClassVar

import jax

from graftax.ops.attention_normed import MHANormed
from graftax.ops.base import Overrides, Shapes
from graftax.ops.tiles import near_and_text, window_on
from graftax.ops.window_2d import check_window, window_pairs
from graftax.spec import OpSpec, Option, Sizes


class SWA2DNormed(MHANormed):
    """`MHANormed` in which image tokens look at a (2 window + 1) x (2 window + 1) window of the grid, clipped at its
    borders, and at the whole text before them, which sees everything: `ClearNormed` (arXiv 2412.16112) with a square for the
    disc, for the single blocks of Flux and AuraFlow. With the same weights.

    Attributes:
        window: how far an image token sees, in rows and in columns.
    """

    window: int = 2

    kind = "swa_2d_normed"
    torch_keys = ()
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
        super().check(op, sizes)
        check_window(op, sizes)

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        """Never: no file tells it from `MHANormed`."""
        return None


class NattenNormed(SWA2DNormed):
    """`SWA2DNormed` whose windows move inwards at the image's borders, so that every token of it sees equally many, as in
    `Natten` (arXiv 2204.07143, Section 3).
    """

    kind = "natten_normed"
    moved = True
