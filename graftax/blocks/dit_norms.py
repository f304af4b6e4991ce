"""DiT's block with a place for every norm that has been proposed: before a branch, on what comes out of it, on the sum."""

from __future__ import annotations

import itertools

import jax

from graftax.blocks.base import Run, Slot
from graftax.blocks.dit import DiTBlock, dit_slots

BRANCHES = ("norm1", "norm2")
"""Of both branches the slot before it, whose name begins the other two."""


class DiTNorms(DiTBlock):
    """x = sum(x + gate * out(mixer(before(x) * (1 + scale) + shift))), then the same with the channel mixer.

    `before` is DiT's `norm1`, `out` the slot `norm1_out`, `sum` the slot `norm1_post`; of the channel mixer `norm2` and so
    on. With `no_norm` in both of the latter this is DiT's block (pre-norm); `graftax.surgery.place_norms` has the others.
    """

    kind = "dit_norms"
    slots = (
        *dit_slots(),
        *(Slot(f"{norm}_{where}", "norm") for norm, where in itertools.product(BRANCHES, ("out", "post"))),
    )

    @property
    def norms(self) -> tuple[str, ...]:
        return BRANCHES  # the others have no counterpart to learn from in a DiT

    def added(self, run: Run, norm: str, x: jax.Array, gate: jax.Array, y: jax.Array) -> jax.Array:
        return run[f"{norm}_post"](x + gate * run[f"{norm}_out"](y))
