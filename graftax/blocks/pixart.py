"""The block of PixArt (Chen et al., PixArt-alpha, arXiv 2310.00426, Section 2.3): DiT's with a look at the text between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp

from graftax.blocks.base import STREAM, BlockKind, Context, Run, Slot, State, Tap, modulate, vectors
from graftax.ops.placement import place


class PixArtBlock(BlockKind):
    """x += gate * mixer(norm(x) * (1 + scale) + shift); x += cross(x), which reads the text, without norm and gate; then
    the first again with the channel mixer. Residuals in float32.

    The modulation gives shift, scale, gate of the mixer, then of the channel mixer. Operators' inputs carry shift and
    scale, their outputs come before the gate.
    """

    kind = "pixart"
    shifted: ClassVar[Mapping[str, tuple[str, int, int]]] = {"norm1": ("adaln", 0, 1), "norm2": ("adaln", 3, 4)}
    slots = (
        Slot("adaln", "modulation", parts=6), Slot("norm1", "norm"), Slot("mixer", "mixer"), Slot("cross", "cross"),
        Slot("norm2", "norm"), Slot("mlp", "channel"),
    )  # fmt: skip

    def body(self, run: Run, state: State, context: Context, tap: Tap) -> State:
        x = state["img"]
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = vectors(run["adaln"](), 6)  # (b, 1, d) or (b, n, d) each
        u = tap("mixer/in", modulate(run["norm1"](x), shift, scale))
        x = place(x + gate * tap("mixer/out", run["mixer"](u).astype(jnp.float32)), *STREAM)
        x = place(x + tap("cross/out", run["cross"](tap("cross/in", x)).astype(jnp.float32)), *STREAM)
        u = tap("mlp/in", modulate(run["norm2"](x), shift_mlp, scale_mlp))
        return {"img": place(x + gate_mlp * tap("mlp/out", run["mlp"](u).astype(jnp.float32)), *STREAM)}
