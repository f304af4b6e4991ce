"""The blocks of Stable Diffusion 3 (Esser et al., arXiv 2403.03206, Section 4 and Figure 2b): two streams, one attention."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from graftax.blocks.base import STREAM, BlockKind, Context, Run, Slot, State, Tap, modulate, vectors
from graftax.ops.placement import place


def _stream(name: str, parts: int) -> tuple[Slot, ...]:
    """What a stream has for itself."""
    norms = (Slot(f"{name}/norm1", "norm", (name,)), Slot(f"{name}/norm2", "norm", (name,)))
    return Slot(f"{name}/adaln", "modulation", (name,), parts), *norms, Slot(f"{name}/mlp", "channel", (name,))


ATTENTION = Slot("attn", "joint", ("txt", "img"))


class SD3Block(BlockKind):
    """Each stream: x += gate * attention of both, then x += gate * mlp, of normalised and modulated tokens; residuals in
    float32.

    A stream's modulation gives shift, scale, gate of the attention, then of the channel mixer. Operators' inputs carry shift
    and scale, their outputs come before the gate.
    """

    kind = "sd3"
    slots = (*_stream("img", 6), *_stream("txt", 6), ATTENTION)

    def body(self, run: Run, state: State, context: Context, tap: Tap) -> State:
        by_stream = {name: vectors(run[f"{name}/adaln"](), 6) for name in ("txt", "img")}  # (b, 1, d) or (b, n, d) each
        u = {name: modulate(run[f"{name}/norm1"](state[name]), *by_stream[name][:2]) for name in by_stream}
        y = _attended(run, tap, u)
        return {name: _finished(run, tap, name, state[name], y[name], by_stream[name][2:]) for name in by_stream}


class SD3DualBlock(BlockKind):
    """`SD3Block` where the image also attends to itself alone, beside the attention of both (SD3.5-medium): x += gate *
    attention of both + gate2 * attn2, then the channel mixer.

    The image's modulation gives shift, scale, gate of the joint attention, of the channel mixer, then of the second
    attention, whose input has the same norm as the first's.
    """

    kind = "sd3_dual"
    slots = (*_stream("img", 9), Slot("img/attn2", "mixer"), *_stream("txt", 6), ATTENTION)

    def body(self, run: Run, state: State, context: Context, tap: Tap) -> State:
        txt, img = vectors(run["txt/adaln"](), 6), vectors(run["img/adaln"](), 9)
        shift2, scale2, gate2 = img[6:]
        normed = run["img/norm1"](state["img"])
        u = {"txt": modulate(run["txt/norm1"](state["txt"]), *txt[:2]), "img": modulate(normed, *img[:2])}
        y = _attended(run, tap, u)
        alone = run["img/attn2"](tap("img/attn2/in", modulate(normed, shift2, scale2)))
        x = place(state["img"] + gate2 * tap("img/attn2/out", alone.astype(jnp.float32)), *STREAM)
        return {
            "txt": _finished(run, tap, "txt", state["txt"], y["txt"], txt[2:]),
            "img": _finished(run, tap, "img", x, y["img"], img[2:6]),
        }


class SD3LastBlock(BlockKind):
    """`SD3Block` whose text is looked at and left as it is: its modulation gives shift and scale alone."""

    kind = "sd3_last"
    slots = (
        *_stream("img", 6), Slot("txt/adaln", "modulation", ("txt",), 2), Slot("txt/norm1", "norm", ("txt",)), ATTENTION
    )  # fmt: skip
    pinned = "it leaves the text as it is, and later blocks were trained on text that every block before them changed"

    def body(self, run: Run, state: State, context: Context, tap: Tap) -> State:
        txt, img = vectors(run["txt/adaln"](), 2), vectors(run["img/adaln"](), 6)
        u = {
            "txt": modulate(run["txt/norm1"](state["txt"]), *txt),
            "img": modulate(run["img/norm1"](state["img"]), *img[:2]),
        }
        y = _attended(run, tap, u)
        return {"txt": state["txt"], "img": _finished(run, tap, "img", state["img"], y["img"], img[2:])}


def _attended(run: Run, tap: Tap, u: State) -> Any:
    """What the joint attention makes of both streams."""
    return tap("attn/out", run["attn"](tap("attn/in", u)))


def _finished(run: Run, tap: Tap, name: str, x: jax.Array, y: jax.Array, rest: list[jax.Array]) -> jax.Array:
    """A stream's tokens x (b, n, d) after its answer y of the attention and its channel mixer; `rest`: the gate of the
    first, then shift, scale and gate of the second."""
    gate, shift, scale, gate_mlp = rest
    x = place(x + gate * y.astype(jnp.float32), *STREAM)
    u = tap(f"{name}/mlp/in", modulate(run[f"{name}/norm2"](x), shift, scale))
    return place(x + gate_mlp * tap(f"{name}/mlp/out", run[f"{name}/mlp"](u).astype(jnp.float32)), *STREAM)
