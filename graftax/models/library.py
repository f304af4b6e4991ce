"""The program as data: one compiled forward pass for blocks in any order, with operators of one or several models.

`graftax.models.forward` compiles the program into the code, which is what a fixed model wants. Here the program is an
argument, so that hundreds of orders of the same blocks (`graftax.analyze.painters`), or of choices between two models'
operators (`graftax.analyze.harm`), share one compilation:

    library = Library((spec,))
    weights = library.prepare(params)
    run = jax.jit(library.forward)
    out = run(weights, library.encode(skip(3, 5).on(spec).program), x, t, cond)

The weights of equal operators are stacked once; a loop of as many rounds as the program has runs of blocks looks each
round's weights up and switches between block kinds and operators. No gradients: the number of rounds is data as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from graftax.blocks import Context, State, block_kind, streams
from graftax.errors import BadInput
from graftax.models.backbone import Cond
from graftax.models.collect import Place, stacked
from graftax.models.forward import embed, head
from graftax.models.lora import materialise
from graftax.models.merge import MERGES, stream_of
from graftax.models.sizes import at_size
from graftax.models.stack import WHICH, run_block
from graftax.ops.base import Params
from graftax.spec import ModelSpec, OpSpec, Step, members

CAPACITY = 1024
"""Runs of blocks that a table of instructions has room for unless told otherwise; what is empty costs nothing."""

Choice = Mapping[tuple[int, str], int]
"""(block, slot) -> which of the library's models the operator there is taken from; 0 where nothing is said."""


class Instructions(NamedTuple):
    """A program as arrays: row r is the r-th run of a block; rows from `length` on are never reached.

    Blocks of one step all read the state and add `weight` * (output - state) to a sum, which the last of them, the one with
    `commit`, adds to the state. An output first goes through part `merge` of the learned projections, -1 for none.

    Attributes:
        length: () int32.
        kind: (rows,) int32, the number of the block's kind.
        place: (rows, slots, 2) int32: the number of each operator among those of its slot, its row in their stack.
        merge: (rows,) int32.
        weight: (rows,) float32.
        commit: (rows,) bool.
    """

    length: ArrayLike
    kind: ArrayLike
    place: ArrayLike
    merge: ArrayLike
    weight: ArrayLike
    commit: ArrayLike


@dataclass(frozen=True)
class Library:
    """The blocks of one model, or of several that differ in nothing but operators, ready for any program over them.

    Attributes:
        specs: of the models; all that is not an operator is the first one's. Raises `BadInput` where their blocks do not
            correspond.
        sites: (block, slot) where the other models' operators may be chosen.
    """

    specs: tuple[ModelSpec, ...]
    sites: frozenset[tuple[int, str]] = frozenset()

    def __post_init__(self) -> None:
        kinds = {tuple(block.kind for block in spec.blocks) for spec in self.specs}
        if len(kinds) != 1 or len({(spec.sizes, spec.backbone) for spec in self.specs}) != 1:
            raise BadInput("library: models of different blocks or sizes, expected ones that differ in operators alone")

    @property
    def spec(self) -> ModelSpec:
        """The first model's."""
        return self.specs[0]

    def prepare(self, *params: Params) -> Params:
        """Weights arranged for any program, adapters folded in: `params` in the order of `specs`.

        blocks: {block kind: {slot: one tree per operator, leaves (blocks that hold it, ...)}}; merges: all parts of all
        learned projections, kernel (parts, d, d), bias (parts, d). Other parts are the first model's objects.
        """
        plain = [materialise(spec, one) for spec, one in zip(self.specs, params, strict=True)]
        blocks: Params = {}
        for (kind, slot, _), holders in self._holders.items():
            parts = [
                stacked(self.specs[s], plain[s]["blocks"], slot, [i for source, i in holders if source == s])
                for s in sorted({source for source, _ in holders})
            ]
            whole = parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
            blocks.setdefault(kind, {}).setdefault(slot, []).append(whole)
        merges = _merge_parts(self.spec, plain[0][MERGES]) if self.spec.merges else {}
        return {**plain[0], "blocks": blocks, MERGES: merges}

    def encode(
        self, program: Sequence[Step] | None = None, choice: Choice | None = None, capacity: int = CAPACITY
    ) -> Instructions:
        """`program`, by default the first model's, as instructions of `capacity` rows.

        Programs of equal capacity run without compiling anew. Raises `BadInput` on blocks or projections that the model has
        not, and on programs of more than `capacity` runs.
        """
        program = self.spec.program if program is None else tuple(program)
        self.spec.replace(program=program)  # checks the steps
        rows: list[tuple[Any, ...]] = [row for step in program for row in _rows(self.spec, step)]
        if not 1 <= len(rows) <= capacity:
            raise BadInput(f"program: {len(rows)} runs of blocks, expected 1 to the capacity of {capacity}")
        blocks, parts, weights, commits = ([row[k] for row in rows] for k in range(4))
        place = {block: self._places(block, choice or {}) for block in set(blocks)}

        def column(values: Sequence[Any], dtype: DTypeLike) -> np.ndarray:
            filled = np.asarray(values, dtype)
            return np.pad(filled, [(0, capacity - len(filled)), *[(0, 0)] * (filled.ndim - 1)])

        kinds = [list(self._kinds).index(self.spec.blocks[block].kind) for block in blocks]
        return Instructions(
            np.int32(len(rows)), column(kinds, np.int32), column([place[block] for block in blocks], np.int32),
            column(parts, np.int32), column(weights, np.float32), column(commits, bool),
        )  # fmt: skip

    def run(
        self, prepared: Params, instructions: Instructions, state: State, context: Context, dtype: DTypeLike | None = None
    ) -> State:
        """`graftax.models.stack.apply_stack` with the program as data; equal to the compiled program up to rounding."""
        table = jax.tree.map(jnp.asarray, instructions)

        def one(kind: str, place: jax.Array, state: State) -> State:
            weights, held = {}, []
            for s, (slot, ops) in enumerate(self._kinds[kind].items()):
                number, row = place[s]
                stacks = prepared["blocks"][kind][slot]
                weights[slot] = {str(k): _row(stacks[k], row) for k in range(len(ops))} | {WHICH: number}
                held.append((slot, ops))
            return run_block(self.spec, (kind, tuple(held)), weights, state, context, dtype=dtype)[0]

        branches = [functools.partial(one, kind) for kind in self._kinds]

        def body(r: jax.Array, carry: tuple[State, State]) -> tuple[State, State]:
            state, change = carry
            out = _switch(table.kind[r], branches, table.place[r], state)
            out = _projected(prepared[MERGES], table.merge[r], out)
            change = {name: change[name] + table.weight[r] * (out[name] - state[name]) for name in state}
            done = table.commit[r]
            state = {name: jnp.where(done, state[name] + change[name], state[name]) for name in state}
            return state, {name: jnp.where(done, 0, array) for name, array in change.items()}

        nothing = jax.tree.map(jnp.zeros_like, state)
        return jax.lax.fori_loop(0, table.length, body, (state, nothing))[0]

    def forward(
        self, prepared: Params, instructions: Instructions, x: jax.Array, t: jax.Array, cond: Cond,
        dtype: DTypeLike | None = None,
    ) -> jax.Array:  # fmt: skip
        """`graftax.models.forward` with the program as data: x (b, h, w, c), t (b,) -> (b, h, w, out_channels)."""
        sized = replace(self, specs=tuple(at_size(spec, x) for spec in self.specs))
        state, context = embed(sized.spec, prepared, x, t, cond, dtype)
        state = sized.run(prepared, instructions, state, context, dtype)
        return head(sized.spec, prepared, state, context, x, t, dtype)

    # --- Where every operator's weights are ---------------------------------------------------------------------------

    @functools.cached_property
    def _holders(self) -> dict[Place, list[tuple[int, int]]]:
        """Everything that the models' blocks hold, and the (model, block) that hold it, in order."""
        held = [
            ((s, i), (block.kind, slot, op))
            for s, spec in enumerate(self.specs) for i, block in enumerate(spec.blocks) for slot, op in block.ops
            if s == 0 or (i, slot) in self.sites
        ]  # fmt: skip
        return {place: [held[k][0] for k in where] for place, where in members(place for _, place in held).items()}

    @functools.cached_property
    def _kinds(self) -> dict[str, dict[str, tuple[OpSpec, ...]]]:
        """By block kind and slot, the operators that are found there."""
        kinds = dict.fromkeys(block.kind for block in self.spec.blocks)
        return {
            kind: {
                slot.name: tuple(op for k, s, op in self._holders if (k, s) == (kind, slot.name))
                for slot in block_kind(kind).slots
            }
            for kind in kinds
        }

    def _places(self, block: int, choice: Choice) -> np.ndarray:
        """(most slots of a kind, 2): number and row of every operator of a block."""
        kind = self.spec.blocks[block].kind
        found = np.zeros((max(map(len, self._kinds.values())), 2), np.int32)
        for s, (slot, ops) in enumerate(self._kinds[kind].items()):
            source = choice.get((block, slot), 0)
            op = self.specs[source].blocks[block][slot]
            found[s] = ops.index(op), self._holders[kind, slot, op].index((source, block))
        return found


def _switch(number: jax.Array, branches: Sequence[Callable[..., Any]], *inputs: Any) -> Any:
    return branches[0](*inputs) if len(branches) == 1 else jax.lax.switch(number, branches, *inputs)


def _row(tree: Params, row: jax.Array) -> Params:
    return jax.tree.map(lambda leaf: leaf[row], tree)


# --- Learned projections: W [f_1, ..., f_m] + b is the mean of the m parts (m W_i) f_i + b ------------------------------


def _merge_parts(spec: ModelSpec, merges: Params) -> Params:
    """By stream, kernel (parts, d, d) and bias (parts, d) of all projections."""

    def of(stream: str) -> Params:
        trees = [(ids, stream_of(merges[spec.merge_key(ids)], stream)) for ids in spec.merges]
        kernels = [p["kernel"].reshape(len(ids), spec.width, -1) * len(ids) for ids, p in trees]
        biases = [jnp.tile(p["bias"], (len(ids), 1)) for ids, p in trees]
        return {"kernel": jnp.concatenate(kernels), "bias": jnp.concatenate(biases)}

    return {stream: of(stream) for stream in streams(spec)}


def _projected(parts: Params, number: jax.Array, out: State) -> State:
    """A block's output through the projections' part of that number, as it is where that is -1."""
    if not parts:
        return out

    def project(out: State) -> State:
        one = {stream: _row(tree, number) for stream, tree in parts.items()}
        highest = jax.lax.Precision.HIGH
        return {name: jnp.matmul(x, one[name]["kernel"], precision=highest) + one[name]["bias"] for name, x in out.items()}

    return jax.lax.switch((number >= 0).astype(jnp.int32), [lambda out: out, project], out)


def _rows(spec: ModelSpec, step: Step) -> Iterator[tuple[int, int, float, bool]]:
    """Block, part of the projections, weight, commit: one row per run of a block in a step."""
    count = len(step.blocks)
    weight = step.alpha if step.merge == "sum" else step.alpha / count
    first = _first_part(spec, step.blocks) if step.merge == "project" else -1
    for _ in range(step.loops):
        for i, block in enumerate(step.blocks):
            yield block, first + i if first >= 0 else -1, weight, i == count - 1


def _first_part(spec: ModelSpec, blocks: tuple[int, ...]) -> int:
    """Where the parts of the projection that merges `blocks` begin."""
    if blocks not in spec.merges:
        raise BadInput(f"program step {blocks}: the model has no projection for it, expected one of {spec.merges}")
    return sum(len(ids) for ids in spec.merges[: spec.merges.index(blocks)])
