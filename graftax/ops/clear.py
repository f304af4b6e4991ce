"""Attention in a disc around every image token, with any text seen by all: CLEAR (arXiv 2412.16112)."""

from __future__ import annotations

import jax
import numpy as np

from graftax.errors import BadInput
from graftax.ops.attention import MHA
from graftax.ops.base import Overrides, Shapes, linear_keys
from graftax.ops.tiles import check_image, disc_on, near_and_text, pairs_seen
from graftax.spec import OpSpec, Option, Sizes


def check_disc(op: OpSpec, sizes: Sizes) -> None:
    """Raise `BadInput` where there is no disc, or no image for it."""
    if op.option("radius") < 1:
        raise BadInput(f"{op.kind} radius: got {op.option('radius')}, expected 1 or more")
    check_image(op.kind, sizes)


def visible_pairs(grid: tuple[int, int], radius: int) -> int:
    """Pairs of tokens of a `grid` of rows x columns that are nearer than `radius`, both orders and each with itself."""
    rows, columns = (np.arange(1 - length, length) for length in grid)
    count = (grid[0] - abs(rows))[:, None] * (grid[1] - abs(columns))  # of pairs this far apart
    return int(count[rows[:, None] ** 2 + columns**2 < radius**2].sum())


class Clear(MHA):
    """Attention of every image token to those nearer than `radius` on the grid and to all of a text before the image, whose
    tokens see everything (`near_and_text`). With the same weights as `MHA`.

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
        return near_and_text(q, k, v, disc_on(self.sizes.grid, self.radius))

    def pairs(self) -> int:
        return pairs_seen(self.sizes, visible_pairs(self.sizes.grid, self.radius), self.tokens)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        check_disc(op, sizes)

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        if super().recognise(shapes, overrides) is None:
            return None
        return {"radius": overrides.get("radius", cls.options()["radius"])}
