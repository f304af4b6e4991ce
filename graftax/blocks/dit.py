"""The adaLN block of DiT (Peebles and Xie, arXiv 2212.09748, Section 3.2)."""

from __future__ import annotations

import jax.numpy as jnp

from graftax.blocks.base import STREAM, BlockKind, Context, Run, Slot, State, Tap, modulate, vectors
from graftax.ops.placement import place


class DiTBlock(BlockKind):
    """x += gate * mixer(norm(x) * (1 + scale) + shift), then the same with the channel mixer; residuals in float32.

    The modulation gives shift, scale, gate of the mixer, then of the channel mixer, for the whole image or for every token.
    Operators' inputs carry shift and scale, their outputs come before the gate.
    """

    kind = "dit"
    slots = (
        Slot("adaln", "modulation", parts=6), Slot("norm1", "norm"), Slot("mixer", "mixer"), Slot("norm2", "norm"),
        Slot("mlp", "channel"),
    )  # fmt: skip

    def body(self, run: Run, state: State, context: Context, tap: Tap) -> State:
        x = state["img"]
        modulation = vectors(run["adaln"](), 6)  # (b, 1, d) or (b, n, d) each
        for norm, slot, (shift, scale, gate) in (("norm1", "mixer", modulation[:3]), ("norm2", "mlp", modulation[3:])):
            u = tap(f"{slot}/in", modulate(run[norm](x), shift, scale))
            y = tap(f"{slot}/out", run[slot](u).astype(jnp.float32))
            x = place(x + gate * y, *STREAM)
        return {"img": x}
