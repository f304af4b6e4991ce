"""The adaLN block of DiT (Peebles and Xie, arXiv 2212.09748, Section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from graftax.blocks.base import BOTH, STREAM, BlockKind, Context, Run, Slot, State, Tap, modulate, vectors
from graftax.ops.placement import place


def dit_slots(parts: int = 6, stream: str = "img", each: bool = False) -> tuple[Slot, ...]:
    """The slots of such a block on a stream; its modulation gives `parts` vectors, where `each` to every token its own."""
    on = (stream,)
    return (
        Slot("adaln", "modulation", on, parts, each), Slot("norm1", "norm", on), Slot("mixer", "mixer", on),
        Slot("norm2", "norm", on), Slot("mlp", "channel", on),
    )  # fmt: skip


class DiTBlock(BlockKind):
    """x += gate * mixer(norm(x) * (1 + scale) + shift), then the same with the channel mixer; residuals in float32.

    The modulation gives shift, scale, gate of the mixer, then of the channel mixer, for the whole image or for every token.
    Operators' inputs carry shift and scale, their outputs come before the gate.
    """

    kind = "dit"
    slots = dit_slots()
    shifted: ClassVar[Mapping[str, tuple[str, int, int]]] = {"norm1": ("adaln", 0, 1), "norm2": ("adaln", 3, 4)}

    def body(self, run: Run, state: State, context: Context, tap: Tap) -> State:
        x = state[self.stream]
        modulation = vectors(run["adaln"](), self.slots[0].parts)  # (b, 1, d) or (b, n, d) each
        half = len(modulation) // 2
        for norm, slot, own in (("norm1", "mixer", modulation[:half]), ("norm2", "mlp", modulation[half:])):
            *shift, scale, gate = own
            u = tap(f"{slot}/in", modulate(run[norm](x), shift[0] if shift else 0.0, scale))
            y = tap(f"{slot}/out", run[slot](u).astype(jnp.float32))
            x = place(self.added(run, norm, x, gate, y), *STREAM)
        return {**state, self.stream: x}

    def added(self, run: Run, norm: str, x: jax.Array, gate: jax.Array, y: jax.Array) -> jax.Array:
        """The stream with what came out of the branch behind `norm`."""
        return x + gate * y


class DiTNoShift(DiTBlock):
    """`DiTBlock` without shifts: the modulation gives scale and gate of the mixer, then of the channel mixer.

    LightningDiT's `wo_shift` (Yao et al., arXiv 2501.01423, released code).
    """

    kind = "dit_no_shift"
    shifted: ClassVar[Mapping[str, tuple[str, int, int]]] = {}
    slots = dit_slots(parts=4)


class DiTTokenBlock(DiTBlock):
    """`DiTBlock` on a class token and an image as one sequence (REG, arXiv 2507.01467)."""

    kind = "dit_token"
    slots = tuple(replace(slot, streams=BOTH) for slot in DiTBlock.slots)

    def body(self, run: Run, state: State, context: Context, tap: Tap) -> State:
        m = state["txt"].shape[1]
        x = place(jnp.concatenate([state[name] for name in BOTH], axis=1), *STREAM)  # (b, m + n, d)
        x = super().body(run, {"img": x}, context, tap)["img"]
        return {"txt": x[:, :m], "img": x[:, m:]}
