"""What a block kind is: slots for operators, and a body that reads like a paper's equation.

    class DiTBlock(BlockKind):
        kind = "dit"
        slots = (Slot("adaln", "modulation", parts=6), Slot("norm1", "norm"), Slot("mixer", "mixer"), ...)

        def body(self, run, state, context, tap): ...

The body gets its operators as functions (`run["mixer"](u)`); whether such a function calls one operator or switches between
several is the executor's matter (`graftax.models.stack`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from graftax import ops
from graftax.ops.base import Operator, Params, call
from graftax.ops.int8 import dequantised
from graftax.ops.rope import Rope
from graftax.spec import OpSpec, Sizes

State = dict[str, jax.Array]
"""What blocks pass on, by stream, float32: {"img": (b, n, d)}, with a text also "txt" (b, m, d), in a DDT also "cond"
(b, n, d)."""

Taps = dict[str, Any]
"""Values on the way by name: arrays, or dicts of streams. "SLOT/in", "SLOT/out", "block/in", "block/out"."""

Run = Mapping[str, Callable[..., jax.Array]]
"""Slot -> its operator as a function."""

Tap = Callable[[str, Any], Any]
"""tap(name, value) notes a value and returns it."""

BOTH = ("txt", "img")
"""Streams of a sequence, in the order of their tokens."""

STREAM = ("batch", "tokens", "width")
"""Axes of a stream, for `graftax.ops.placement.place`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """All that blocks read and none writes: computed once a pass, so that the order of blocks never touches it.

    Attributes:
        vec: the conditioning vector (b, d), or (b, n, d) where every token has its own.
        shared: what operators of a kind compute from `vec` once for all blocks, by kind (`Modulation.shared_part`).
        text: (b, m, d), the text that cross-attention looks at; None in models without.
        text_mask: (b, m) bool, which of its tokens are real; None: all of them.
        rope: rotary positions of all tokens of the streams, text before image (`graftax.ops.rope`); None: none.
        time: what `vec` holds of the time, (b, d), in models that condition on it alone as well.
        kept: behind the blocks, places (b, k) int of the image's tokens that they left; None: all.
    """

    vec: jax.Array
    shared: Mapping[str, jax.Array] = field(default_factory=dict)
    text: jax.Array | None = None
    text_mask: jax.Array | None = None
    rope: Rope | None = None
    time: jax.Array | None = None
    kept: jax.Array | None = None


@dataclass(frozen=True)
class Slot:
    """A place for an operator.

    Attributes:
        name: "mixer", or with its stream "img/mlp"; also the operator's place in the block's parameters.
        role: which operators fit (`Operator.role`).
        streams: on which it works; several are concatenated in this order, or stand side by side for the role "joint".
        parts: vectors that a modulation must give, 0 for other roles.
        each: whether it gives them for every token.
    """

    name: str
    role: str
    streams: tuple[str, ...] = ("img",)
    parts: int = 0
    each: bool = False

    def sizes(self, sizes: Sizes) -> Sizes:
        """What its operator is built to: the tokens of its streams alone, and the text where it reads that."""
        return replace(
            sizes,
            text=sizes.text if "txt" in self.streams else 0,
            grid=(0, 0) if self.streams == ("txt",) else sizes.grid,
            context=sizes.context if self.role == "cross" else 0,
        )

    def resolve(self, op: OpSpec, sizes: Sizes) -> OpSpec:
        """`op` with every option spelled out. Raises `BadInput` where it does not fit here (`graftax.ops.resolve`)."""
        return ops.resolve(op, self.role, self.sizes(sizes))

    def build(
        self, op: OpSpec, sizes: Sizes, dtype: DTypeLike | None = None, init_style: str = "torch", name: str | None = None
    ) -> Operator:
        """The operator `op` in this slot of a model of `sizes`; `name` is that of the Linen module."""
        given = {"parts": self.parts, "each": self.each} if self.parts else {}
        return ops.build(op, self.sizes(sizes), dtype, init_style, name=name, **given)


class BlockKind(ABC):
    """The structure of a block.

    Attributes:
        kind: its name.
        slots: its places for operators, in the order of the parameters' description.
        pinned: why such a block belongs at the end of a program; "" where it may run anywhere.
        shifted: slot of a norm -> that of the modulation behind it, and which of its vectors shift and scale what the norm
            gives.
        stream: of the image's tokens, the one that it changes.
    """

    kind: ClassVar[str]
    slots: ClassVar[tuple[Slot, ...]]
    pinned: ClassVar[str] = ""
    shifted: ClassVar[Mapping[str, tuple[str, int, int]]] = {}
    stream: ClassVar[str] = "img"

    @abstractmethod
    def body(self, run: Run, state: State, context: Context, tap: Tap) -> State:
        """The state after the block: the same streams, of the same shapes."""

    def under(self, state: State, context: Context) -> Context:
        """What its operators read where the streams are at `state`: the context of the pass, but in kinds that condition one
        stream on another."""
        return context

    @property
    def tapped(self) -> tuple[str, ...]:
        """Slots whose operator's input and output the body taps: all but modulations and norms."""
        return tuple(slot.name for slot in self.slots if slot.role not in ("modulation", "norm"))

    @property
    def branches(self) -> tuple[str, ...]:
        """Slots whose answers are branches that stochastic depth may drop: mixers of tokens and of channels, no look at a
        text."""
        return tuple(slot.name for slot in self.slots if slot.role in ("mixer", "joint", "channel"))

    @property
    def norms(self) -> tuple[str, ...]:
        """Slots of norms: whatever the body gives them, and what comes out, is tapped too."""
        return tuple(slot.name for slot in self.slots if slot.role == "norm")

    @property
    def taps(self) -> tuple[str, ...]:
        """Names that `capture` accepts."""
        names = (*self.tapped, *self.norms)
        return ("block/in", *(f"{name}/{end}" for name in names for end in ("in", "out")), "block/out")

    def __call__(self, run: Run, state: State, context: Context, capture: tuple[str, ...]) -> tuple[State, Taps]:
        """Run the body; the taps named in `capture` leave it. State of one stream is tapped as that stream's array."""
        taps: Taps = {}

        def tap(name: str, value: Any) -> Any:
            if name in capture:
                taps[name] = value
            return value

        def tapped(norm: str) -> Callable[[jax.Array], jax.Array]:
            return lambda x: tap(f"{norm}/out", run[norm](tap(f"{norm}/in", x)))

        tap("block/in", alone(state))
        state = self.body({**run, **{norm: tapped(norm) for norm in self.norms}}, state, context, tap)
        tap("block/out", alone(state))
        return state, taps


def alone(state: State) -> State | jax.Array:
    """The array of a state of one stream, else the state."""
    return next(iter(state.values())) if len(state) == 1 else state


def as_state(value: Any) -> State:
    """The inverse of `alone`: an array is the state of the image stream."""
    return value if isinstance(value, dict) else {"img": value}


def bind(operator: Operator, params: Params, context: Context) -> Callable[..., jax.Array]:
    """The operator as a function of what its slot passes; what it reads of the context is put in."""
    reads = {name: getattr(context, name) for name in operator.reads}
    return lambda *inputs: call(operator, dequantised(params), *inputs, **reads)


def part(tree: Params, slot: str) -> Params:
    """A slot's parameters in a block's tree, {} where the operator has none."""
    for name in slot.split("/"):
        tree = tree.get(name, {})
    return tree


def vectors(modulation: jax.Array, parts: int) -> list[jax.Array]:
    """A modulation (b, parts d) or (b, n, parts d) as its vectors (b, 1, d) or (b, n, d), float32."""
    modulation = modulation if modulation.ndim == 3 else modulation[:, None]
    return jnp.split(modulation.astype(jnp.float32), parts, axis=-1)


def modulate(x: jax.Array, shift: ArrayLike, scale: jax.Array) -> jax.Array:
    """adaLN: x * (1 + scale) + shift."""
    return x * (1 + scale) + shift
