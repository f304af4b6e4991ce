"""The blocks of AuraFlow (fal, 2024; no paper): two streams that meet in a joint attention, then one stream of both.

Their residual is their own. The attention's answer is never added to the stream: it only enters what the channel mixer sees,

    h = norm2(x + gate1 * attention(norm1(x) * (1 + scale1) + shift1)),
    x + gate2 * mlp(h * (1 + scale2) + shift2),

as in cloneofsimo's minRF (`advanced/mmdit.py`) and diffusers' AuraFlowTransformer2DModel. Where the channel mixer gives zero
the block changes nothing.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from graftax.blocks.base import BOTH, STREAM, BlockKind, Context, Run, Slot, State, Tap, modulate, vectors
from graftax.ops.placement import place


class AuraJoint(BlockKind):
    """The block above on image and text, each with modulation, norms and channel mixer of its own; `attn` reads both.

    Modulations give shift, scale, gate of the attention, then of the channel mixer. Operators' inputs carry shift and scale,
    their outputs come before the gate.
    """

    kind = "aura_joint"
    slots = (
        Slot("img/adaln", "modulation", parts=6), Slot("txt/adaln", "modulation", ("txt",), parts=6),
        Slot("img/norm1", "norm"), Slot("txt/norm1", "norm", ("txt",)), Slot("attn", "joint", BOTH),
        Slot("img/norm2", "norm"), Slot("txt/norm2", "norm", ("txt",)), Slot("img/mlp", "channel"),
        Slot("txt/mlp", "channel", ("txt",)),
    )  # fmt: skip

    def body(self, run: Run, state: State, context: Context, tap: Tap) -> State:
        parts = {name: vectors(run[f"{name}/adaln"](), 6) for name in state}
        u = {name: modulate(run[f"{name}/norm1"](x), *parts[name][:2]) for name, x in state.items()}
        mixed: Any = run["attn"](tap("attn/in", u))
        y = tap("attn/out", {name: mixed[name].astype(jnp.float32) for name in state})
        out: State = {}
        for name, x in state.items():
            _, _, gate, shift, scale, gate_mlp = parts[name]  # (b, 1, d) or (b, n, d) each
            v = tap(f"{name}/mlp/in", modulate(run[f"{name}/norm2"](x + gate * y[name]), shift, scale))
            out[name] = place(x + gate_mlp * tap(f"{name}/mlp/out", run[f"{name}/mlp"](v).astype(jnp.float32)), *STREAM)
        return out


class AuraSingle(BlockKind):
    """The block above on text and image as one sequence."""

    kind = "aura_single"
    slots = (
        Slot("adaln", "modulation", BOTH, parts=6), Slot("norm1", "norm", BOTH), Slot("mixer", "mixer", BOTH),
        Slot("norm2", "norm", BOTH), Slot("mlp", "channel", BOTH),
    )  # fmt: skip

    def body(self, run: Run, state: State, context: Context, tap: Tap) -> State:
        m = state["txt"].shape[1]
        x: jax.Array = place(jnp.concatenate([state[name] for name in BOTH], axis=1), *STREAM)  # (b, m + n, d)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = vectors(run["adaln"](), 6)
        u = tap("mixer/in", modulate(run["norm1"](x), shift, scale))
        y = tap("mixer/out", run["mixer"](u).astype(jnp.float32))
        v = tap("mlp/in", modulate(run["norm2"](x + gate * y), shift_mlp, scale_mlp))
        x = place(x + gate_mlp * tap("mlp/out", run["mlp"](v).astype(jnp.float32)), *STREAM)
        return {"txt": x[:, :m], "img": x[:, m:]}
