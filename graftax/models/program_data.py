"""The program as data: one compiled forward pass that runs a model's blocks in whatever order it is given.

`graftax.models.forward` compiles the program into the code, which is what a fixed model wants. Here the program is an
argument, so that hundreds of orders of the same blocks (`graftax.analyze.painters`) share one compilation:

    weights = prepare_any(spec, params)
    run = jax.jit(functools.partial(forward_any, spec))
    out = run(weights, encode(spec, skip(3, 5).on(spec).program), x, t, y)

The weights of equal operators are stacked once; a loop of as many rounds as the program has runs of blocks looks each
round's weights up and switches between the kinds of operators. No gradients: the number of rounds is data as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from graftax import ops
from graftax.errors import BadInput
from graftax.models.block import block_body
from graftax.models.collect import ADALN, Params, stacked
from graftax.models.dit import embed
from graftax.models.embed import FinalLayer, call
from graftax.models.lora import materialise
from graftax.spec import SLOTS, ModelSpec, OpSpec, Step, merge_key

CAPACITY = 1024
"""Runs of blocks that a table of instructions has room for unless told otherwise; what is empty costs nothing."""


class Instructions(NamedTuple):
    """A program as arrays: row r is the r-th run of a block; rows from `length` on are never reached.

    Blocks of one step all read the stream x and add `weight` * (output - x) to a sum, which the last of them, the one with
    `commit`, adds to the stream. An output first goes through part `merge` of the learned projections, -1 for none.
    """

    length: ArrayLike  # () int32
    block: ArrayLike  # (rows,) int32
    place: ArrayLike  # (rows, slots, 2) int32: the number of the operator's kind, its row in the stack of that kind
    merge: ArrayLike  # (rows,) int32
    weight: ArrayLike  # (rows,) float32
    commit: ArrayLike  # (rows,) bool


def prepare_any(spec: ModelSpec, params: Params) -> Params:
    """`params` arranged for any program over the blocks of `spec`, adapters folded in: one stacked copy of the blocks.

    blocks: {"adaln": leaves (depth, ...), "mixer" and "mlp": one tree per kind, leaves (blocks of that kind, ...)};
    merges: all parts of all learned projections, kernel (parts, d, d), bias (parts, d). Other parts are the same objects.
    """
    params = materialise(spec, params)
    blocks: Params = {ADALN: stacked(spec, params["blocks"], ADALN, range(spec.depth))}
    for slot in SLOTS:
        blocks[slot] = [stacked(spec, params["blocks"], slot, ids) for ids in _kinds(spec, slot).values()]
    merges = _merge_parts(spec, params["merges"]) if spec.merges else {}
    return {**params, "blocks": blocks, "merges": merges}


def encode(spec: ModelSpec, program: Sequence[Step] | None = None, capacity: int = CAPACITY) -> Instructions:
    """`program`, by default that of `spec`, as instructions of `capacity` rows for weights that `prepare_any(spec)` made.

    Programs of equal capacity run without compiling anew. Raises `BadInput` on blocks or projections that `spec` has not,
    and on programs of more than `capacity` runs.
    """
    program = spec.program if program is None else tuple(program)
    spec.replace(program=program)  # checks the steps
    places = [_places(spec, slot) for slot in SLOTS]
    rows: list[tuple[Any, ...]] = [row for step in program for row in _rows(spec, step)]
    if len(rows) > capacity:
        raise BadInput(f"program: {len(rows)} runs of blocks, expected at most the capacity of {capacity}")
    blocks, parts, weights, commits = ([row[k] for row in rows] for k in range(4))

    def column(values: Sequence[Any] | np.ndarray, dtype: DTypeLike) -> np.ndarray:
        filled = np.asarray(values, dtype)
        return np.pad(filled, [(0, capacity - len(filled)), *[(0, 0)] * (filled.ndim - 1)])

    operators = np.array([[place[block] for place in places] for block in blocks]).reshape(-1, len(SLOTS), 2)
    return Instructions(
        np.int32(len(rows)), column(blocks, np.int32), column(operators, np.int32), column(parts, np.int32),
        column(weights, np.float32), column(commits, bool),
    )  # fmt: skip


def run_any(
    spec: ModelSpec, prepared: Params, instructions: Instructions, x: jax.Array, c: jax.Array, dtype: DTypeLike | None = None
) -> jax.Array:
    """`graftax.models.stack.apply_stack` with the program as data: tokens x (b, n, d), conditioning c (b, d) -> (b, n, d).

    `prepared` comes from `prepare_any`, `instructions` from `encode`, both with this `spec`, whose own program does not
    matter here. Equal to the compiled program up to rounding.
    """
    blocks, merges, activated = prepared["blocks"], prepared["merges"], nn.silu(c)
    table, kinds = jax.tree.map(jnp.asarray, instructions), {slot: tuple(_kinds(spec, slot)) for slot in SLOTS}

    def body(r: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, change = carry
        adaln = call(nn.Dense(6 * spec.hidden_size, dtype=dtype), _row(blocks[ADALN], table.block[r]), activated)
        mixer, mlp = (operator_at(spec, kinds[slot], blocks[slot], table.place[r, s], dtype) for s, slot in enumerate(SLOTS))
        out, _ = block_body(x, adaln, mixer, mlp, spec.compat)
        out = _merged(merges, table.merge[r], out)
        change += table.weight[r] * (out - x)
        done = table.commit[r]
        return jnp.where(done, x + change, x), jnp.where(done, 0, change)

    return jax.lax.fori_loop(0, table.length, body, (x, jnp.zeros_like(x)))[0]


def forward_any(
    spec: ModelSpec, prepared: Params, instructions: Instructions, x: jax.Array, t: jax.Array, y: jax.Array,
    dtype: DTypeLike | None = None,
) -> jax.Array:  # fmt: skip
    """`graftax.models.forward` with the program as data: x (b, h, w, c), t (b,), y (b,) -> (b, h, w, out_channels)."""
    x, c = embed(spec, prepared, x, t, y, dtype)
    x = run_any(spec, prepared, instructions, x, c, dtype)
    return call(FinalLayer(spec.patch_size, spec.out_channels, dtype), prepared["final"], x, c)


# --- Weights -----------------------------------------------------------------------------------------------------------


def _kinds(spec: ModelSpec, slot: str) -> dict[OpSpec, list[int]]:
    """The distinct operators of a slot in order of appearance, each with the blocks that hold it."""
    found: dict[OpSpec, list[int]] = {}
    for i, block in enumerate(spec.blocks):
        found.setdefault(getattr(block, slot), []).append(i)
    return found


def _places(spec: ModelSpec, slot: str) -> dict[int, tuple[int, int]]:
    """For each block the number of its operator's kind, and its row in the stack of that kind."""
    return {i: (kind, row) for kind, ids in enumerate(_kinds(spec, slot).values()) for row, i in enumerate(ids)}


def _row(tree: Params, row: jax.Array) -> Params:
    return jax.tree.map(lambda leaf: leaf[row], tree)


def operator_at(
    spec: ModelSpec, kinds: Sequence[OpSpec], stacks: Sequence[Params], place: jax.Array, dtype: DTypeLike | None = None
) -> Callable[[jax.Array], jax.Array]:
    """The operator at a traced place (2,), its kind's number and its row in that kind's stack, as a function of its input
    (b, n, d). `stacks`: for each of `kinds` the weights of its operators, leaves (rows, ...)."""

    def run(op: OpSpec, stack: Params, row: jax.Array, u: jax.Array) -> jax.Array:
        return call(ops.build(op, spec, dtype), _row(stack, row), u)

    branches = [functools.partial(run, op, stack) for op, stack in zip(kinds, stacks, strict=True)]
    return lambda u: jax.lax.switch(place[0], branches, place[1], u)


# --- Learned projections: W [f_1, ..., f_m] + b is the mean of the m parts (m W_i) f_i + b ------------------------------


def _merge_parts(spec: ModelSpec, merges: Params) -> Params:
    kernels = [merges[merge_key(ids)]["kernel"].reshape(len(ids), spec.hidden_size, -1) * len(ids) for ids in spec.merges]
    biases = [jnp.tile(merges[merge_key(ids)]["bias"], (len(ids), 1)) for ids in spec.merges]
    return {"kernel": jnp.concatenate(kernels), "bias": jnp.concatenate(biases)}


def _merged(parts: Params, part: jax.Array, out: jax.Array) -> jax.Array:
    """A block's output (b, n, d) through the projection's part of that number, as it is where that is -1."""
    if not parts:
        return out

    def project(out: jax.Array) -> jax.Array:
        one = _row(parts, part)
        return jnp.matmul(out, one["kernel"], precision=jax.lax.Precision.HIGH) + one["bias"]

    return jax.lax.switch((part >= 0).astype(jnp.int32), [lambda out: out, project], out)


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
