"""The blocks of Flux (Black Forest Labs, FLUX.1): text and image beside each other, then as one sequence."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from graftax.blocks.base import STREAM, BlockKind, Context, Run, Slot, State, Tap, modulate, vectors
from graftax.ops.joint import STREAMS
from graftax.ops.placement import place


class DoubleBlock(BlockKind):
    """Each stream: x += gate * attn(u) of both, u = norm(x) * (1 + scale) + shift; then x += gate * mlp(u), u likewise.

    The block of MM-DiT (arXiv 2403.03206, Figure 2); diffusers' FluxTransformerBlock. A stream's modulation gives shift,
    scale, gate of the attention, then of the channel mixer. Operators' inputs carry shift and scale, their outputs come
    before the gate. Residuals in float32.
    """

    kind = "double"
    slots = (
        Slot("img/adaln", "modulation", parts=6), Slot("txt/adaln", "modulation", ("txt",), parts=6),
        Slot("img/norm1", "norm"), Slot("txt/norm1", "norm", ("txt",)), Slot("attn", "joint", STREAMS),
        Slot("img/norm2", "norm"), Slot("txt/norm2", "norm", ("txt",)),
        Slot("img/mlp", "channel"), Slot("txt/mlp", "channel", ("txt",)),
    )  # fmt: skip

    def body(self, run: Run, state: State, context: Context, tap: Tap) -> State:
        given = {name: vectors(run[f"{name}/adaln"](), 6) for name in state}  # (b, 1, d) each
        u = {name: modulate(run[f"{name}/norm1"](x), *given[name][:2]) for name, x in state.items()}
        y: Any = tap("attn/out", run["attn"](tap("attn/in", u)))
        out: State = {}
        for name, x in state.items():
            _, _, gate, shift, scale, gate_mlp = given[name]
            x = place(x + gate * y[name].astype(jnp.float32), *STREAM)
            v = tap(f"{name}/mlp/in", modulate(run[f"{name}/norm2"](x), shift, scale))
            out[name] = place(x + gate_mlp * tap(f"{name}/mlp/out", run[f"{name}/mlp"](v).astype(jnp.float32)), *STREAM)
        return out


class SingleBlock(BlockKind):
    """x += gate * (mixer(u) + mlp(u)), u = norm(x) * (1 + scale) + shift, on text and image as one sequence [text | image].

    Mixer and channel mixer side by side (arXiv 2302.05442); diffusers' FluxSingleTransformerBlock, whose one output layer
    is the sum of both of these. Taps as in `DoubleBlock`.
    """

    kind = "single"
    slots = (
        Slot("adaln", "modulation", STREAMS, parts=3), Slot("norm", "norm", STREAMS), Slot("mixer", "mixer", STREAMS),
        Slot("mlp", "channel", STREAMS),
    )  # fmt: skip

    def body(self, run: Run, state: State, context: Context, tap: Tap) -> State:
        m = state["txt"].shape[1]
        x = jnp.concatenate([state[name] for name in STREAMS], axis=1)  # (b, m + n, d)
        shift, scale, gate = vectors(run["adaln"](), 3)
        u = modulate(run["norm"](x), shift, scale)
        mixed = tap("mixer/out", run["mixer"](tap("mixer/in", u)).astype(jnp.float32))
        x = place(x + gate * (mixed + tap("mlp/out", run["mlp"](tap("mlp/in", u)).astype(jnp.float32))), *STREAM)
        return {"txt": x[:, :m], "img": x[:, m:]}
