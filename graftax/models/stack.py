"""The one executor of blocks: plans, taps, rematerialisation.

`prepare` arranges the weights as a plan needs them (stacked for scans); `run_stack` runs them. They are two functions so
that a sampler prepares once, outside its loop over timesteps. `apply_stack` is both in one. Nothing here knows a slot, a
block kind or a backbone by name: every block runs through `run_block`, and what differs between plans is how an operator
becomes a function, by a call or by a switch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from graftax.blocks import Context, State, Taps, alone, bind, block_kind, build
from graftax.errors import BadInput, did_you_mean
from graftax.models.collect import one_block, stack, stacked
from graftax.models.merge import merged
from graftax.models.plans import Segment, segments
from graftax.models.policy import PLAIN, Draws, Policy
from graftax.models.routing import enter, leave
from graftax.ops.base import Params
from graftax.ops.target import target
from graftax.spec import BlockSpec, ModelSpec, OpSpec, Step, members

Held = OpSpec | tuple[OpSpec, ...]
"""What a slot holds: one operator, or several of which a traced number says which runs."""

Block = tuple[str, tuple[tuple[str, Held], ...]]
"""A block as the executor sees it: its kind, and what every slot holds."""

BlockFn = Callable[[Block, Mapping[str, Params], State, Context, jax.Array | None], tuple[State, Taps]]
Scales = jax.Array | None
"""Factors of the branches of some steps, a row each (`Policy.scales`); None: none is dropped."""

WHICH = "which"
"""Where the weights of several operators have the number of the one that runs."""

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
}
"""Rematerialisation policies: keep all activations, none but block inputs, or matmul results only. "auto" is one of them."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prepared:
    """Weights of a stack arranged for a plan.

    Attributes:
        weights: one entry per segment.
        segments: how the program is cut.
    """

    weights: tuple[Any, ...]
    segments: tuple[Segment, ...] = field(metadata={"static": True})


def apply_stack(
    spec: ModelSpec, blocks: Params, state: State, context: Context, *, merges: Params | None = None, plan: str = "auto",
    capture: Sequence[str] = (), dtype: DTypeLike | None = None, remat: str = "none",
) -> tuple[State, Taps]:  # fmt: skip
    """Run the program of `spec` on `state` under `context`.

    `blocks` is `params["blocks"]`, plain or collected (`graftax.models.collect`); `merges` is `params["merges"]`, where
    the program has learned projections. Returns the state and taps[name] (l, b, n, d), or a dict of such by stream, one row
    per run of a block that has this tap, in the order of the program (`tap_runs`). Raises `BadInput` for unknown plans,
    taps or remat policies.
    """
    prepared = prepare(spec, blocks, plan, merges)
    return run_stack(spec, prepared, state, context, capture=capture, dtype=dtype, remat=remat)


def prepare(
    spec: ModelSpec, blocks: Params, plan: str = "auto", merges: Params | None = None, cuts: Iterable[int] = ()
) -> Prepared:
    """Weights arranged for `plan`, also for passes that must stop at `cuts` (`Policy.cuts`). Raises `BadInput` on a plan
    that does not fit the blocks."""
    cut = segments(spec, plan, cuts)
    return Prepared(tuple(_arrange(spec, blocks, merges or {}, segment) for segment in cut), cut)


def run_stack(
    spec: ModelSpec, prepared: Prepared, state: State, context: Context, *, capture: Sequence[str] = (),
    dtype: DTypeLike | None = None, remat: str = "none", policy: Policy = PLAIN, draws: Draws | None = None,
    states: Sequence[int] = (),
) -> tuple[State, Taps]:  # fmt: skip
    """`apply_stack` on weights that `prepare` arranged.

    `policy` leaves out what `draws` (`Policy.draw`) say. `states`: positions of the program behind which the state is noted
    as taps["state/7"], on a route of the kept tokens alone. The weights must be prepared with the cuts of both.
    """
    check_capture(spec, capture)
    if remat not in ("auto", *REMAT):
        raise BadInput(f"remat: got {remat!r}, expected one of {('auto', *REMAT)}")
    if policy and capture:
        raise BadInput(f"capture: got {tuple(capture)} with the policy {policy}, expected none: it changes what taps hold")
    draws, rows, noted = draws or {}, list[Taps](), Taps()
    scales = policy.scales(draws, len(spec.program))
    begun, at = None, 0
    for segment, weights in zip(prepared.segments, prepared.weights, strict=True):
        end = at + segment.steps
        _check_cut(policy, states, at, end)
        if begun is None and (order := policy.kept(spec, draws, at)) is not None:
            begun, state = enter(spec, order, state, context)
        there, read = (begun.spec, begun.context) if begun else (spec, context)
        block = _block_fn(there, tuple(capture), dtype, chosen_remat(remat))
        factors = None if scales is None else scales[at:end]
        state, taps = _RUN[segment.mode](there, segment, weights, factors, state, read, block)
        rows.append(taps)
        if end - 1 in states:
            noted[f"state/{end - 1}"] = alone(state)
        if begun and policy.ends(end - 1):
            begun, state = None, leave(begun, state)
        at = end
    return state, {**_joined(rows), **noted}


def steps_of(
    spec: ModelSpec, prepared: Prepared, context: Context, dtype: DTypeLike | None = None
) -> list[Callable[[State], State]]:
    """Every step of the program as a function of the state. The weights must be prepared with a cut before each."""
    block = _block_fn(spec, (), dtype, "none")

    def one(segment: Segment, weights: Any) -> Callable[[State], State]:
        return lambda state: _RUN[segment.mode](spec, segment, weights, None, state, context, block)[0]

    if len(prepared.segments) != len(spec.program):
        raise BadInput(f"weights: {len(prepared.segments)} pieces, expected one for each of {len(spec.program)} steps")
    return [one(*piece) for piece in zip(prepared.segments, prepared.weights, strict=True)]


def _check_cut(policy: Policy, states: Sequence[int], at: int, end: int) -> None:
    """Raise `BadInput` where a route or a noted state lies within a segment of steps `at` to `end`."""
    if inside := [cut for cut in (*policy.cuts, *(i + 1 for i in states)) if at < cut < end]:
        raise BadInput(f"weights: prepared in one piece over position {inside[0]}, expected prepare(..., cuts=policy.cuts)")


def chosen_remat(remat: str) -> str:
    """What "auto" stands for: a CPU computes what lies between matmuls sooner than it fetches it from memory."""
    return ("dots" if target() == "cpu" else "none") if remat == "auto" else remat


def runs(spec: ModelSpec) -> tuple[int, ...]:
    """Block ids in the order in which the program runs them, loops unrolled."""
    return tuple(i for step in spec.program for _ in range(step.loops) for i in step.blocks)


def tap_names(spec: ModelSpec) -> tuple[str, ...]:
    """Names that `capture` accepts for a model."""
    kinds = dict.fromkeys(block.kind for block in spec.blocks)
    return tuple(dict.fromkeys(name for kind in kinds for name in block_kind(kind).taps))


def tap_runs(spec: ModelSpec, name: str) -> tuple[int, ...]:
    """The block of every row of a tap: those of `runs` whose kind has it."""
    return tuple(i for i in runs(spec) if name in block_kind(spec.blocks[i].kind).taps)


def check_capture(spec: ModelSpec, capture: Sequence[str]) -> None:
    """Raise `BadInput` on names of taps that no block of the model has."""
    known = tap_names(spec)
    if unknown := [name for name in capture if name not in known]:
        raise BadInput(f"capture: unknown taps {unknown}, expected some of {known}{did_you_mean(unknown[0], known)}")


# --- One block -------------------------------------------------------------------------------------------------------


def run_block(
    spec: ModelSpec, block: Block, weights: Mapping[str, Params], state: State, context: Context,
    capture: tuple[str, ...] = (), dtype: DTypeLike | None = None, scale: jax.Array | None = None,
) -> tuple[State, Taps]:  # fmt: skip
    """One block: its weights by slot, for several operators in a slot as `operator` takes them.

    `scale`: factors of its branches, (branches, b), or () for all of them.
    """
    kind, held = block
    context = block_kind(kind).under(state, context)
    run = {slot: operator(spec, kind, slot, ops, weights[slot], context, dtype) for slot, ops in held}
    if scale is not None:
        for i, slot in enumerate(block_kind(kind).branches):
            run[slot] = _scaled(run[slot], scale[i][:, None, None] if scale.ndim else scale)
    return block_kind(kind)(run, state, context, capture)


def _scaled(function: Callable[..., Any], scale: jax.Array) -> Callable[..., Any]:
    """`function` whose answers (b, t, d), of all streams, are multiplied by `scale`, in float32."""
    return lambda *inputs: jax.tree.map(lambda y: scale * y.astype(jnp.float32), function(*inputs))


def operator(
    spec: ModelSpec, kind: str, slot: str, held: Held, weights: Params, context: Context, dtype: DTypeLike | None
) -> Callable[..., jax.Array]:
    """An operator as a function of its input.

    For several, a switch: `weights` then has the weights of each by its number as text, and under `WHICH` the traced
    number of the one that runs.
    """
    if isinstance(held, OpSpec):
        return bind(build(spec, kind, slot, held, dtype), weights, context)
    branches = [operator(spec, kind, slot, op, weights[str(k)], context, dtype) for k, op in enumerate(held)]
    return branches[0] if len(branches) == 1 else lambda *inputs: jax.lax.switch(weights[WHICH], branches, *inputs)


def as_block(block: BlockSpec) -> Block:
    """A block whose slots hold one operator each."""
    return block.kind, block.ops


def _block_fn(spec: ModelSpec, capture: tuple[str, ...], dtype: DTypeLike | None, remat: str) -> BlockFn:
    """`run_block` with rematerialisation; only captured taps leave it. A block whose scale () is 0 is not computed."""

    def one(
        block: Block, weights: Mapping[str, Params], state: State, context: Context, scale: jax.Array | None = None
    ) -> tuple[State, Taps]:
        return run_block(spec, block, weights, state, context, capture, dtype, scale)

    policy = REMAT[remat]
    kept = one if policy is None else jax.checkpoint(one, policy=policy, static_argnums=(0,))  # pyright: ignore

    def dropped(
        block: Block, weights: Mapping[str, Params], state: State, context: Context, scale: jax.Array | None = None
    ) -> tuple[State, Taps]:
        if scale is None or scale.ndim:
            return kept(block, weights, state, context, scale)
        return jax.lax.cond(scale > 0, lambda x: kept(block, weights, x, context, scale), lambda x: (x, Taps()), state)

    return dropped


# --- Segments: how weights are arranged, how they run ------------------------------------------------------------------


def _arrange(spec: ModelSpec, blocks: Params, merges: Params, segment: Segment) -> Any:
    if segment.mode == "periodic":
        return _stack_groups(spec, blocks, segment.ids, segment.period)
    if segment.mode == "kinds":
        return _stack_kinds(spec, blocks, segment.ids)
    if segment.mode == "parallel_scan":
        count = len(segment.step.blocks)  # pyright: ignore[reportOptionalMemberAccess]
        steps = [segment.ids[k : k + count] for k in range(0, len(segment.ids), count)]
        projections = stack([_projection(spec, merges, segment, ids) for ids in steps])
        return _stack_groups(spec, blocks, segment.ids, count), projections
    plain = [one_block(spec, blocks, i) for i in segment.ids]
    return (plain, _projection(spec, merges, segment, segment.ids)) if segment.mode == "parallel" else plain


def _stack_groups(spec: ModelSpec, blocks: Params, ids: Sequence[int], period: int) -> list[Params]:
    """For each place in a group of `period` blocks, the weights of the blocks there: leaves (groups, ...)."""
    places = (ids[j::period] for j in range(period))
    return [{slot: stacked(spec, blocks, slot, alike) for slot in spec.blocks[alike[0]].slots} for alike in places]


def _projection(spec: ModelSpec, merges: Params, segment: Segment, ids: tuple[int, ...]) -> Params:
    """The projection that merges blocks `ids`, {} where the segment's steps have none."""
    return merges[spec.merge_key(ids)] if segment.step and segment.step.merge == "project" else {}


def _kinds(spec: ModelSpec, ids: Sequence[int]) -> tuple[Block, dict[str, list[int]]]:
    """Blocks of one kind as one that holds every operator of each, and by slot which of them each block has."""
    held = {slot: members(spec.blocks[i][slot] for i in ids) for slot in spec.blocks[ids[0]].slots}
    which = {slot: [list(found).index(spec.blocks[i][slot]) for i in ids] for slot, found in held.items()}
    return (spec.blocks[ids[0]].kind, tuple((slot, tuple(found)) for slot, found in held.items())), which


def _stack_kinds(spec: ModelSpec, blocks: Params, ids: Sequence[int]) -> Params:
    """Every operator gets a row for every block, zeros where the block has another.

    The zeros cost memory (one more copy of the slot per further operator) but keep the gradient linear in the depth;
    indexing compact stacks inside the loop would make each step of the backward pass rewrite the whole stack.
    """
    out: Params = {}
    (_, held), which = _kinds(spec, ids)
    for slot, ops in held:
        out[slot] = {}
        for k in range(len(ops)):  # pyright: ignore[reportArgumentType]
            rows = [row for row, has in enumerate(which[slot]) if has == k]
            compact = stacked(spec, blocks, slot, [ids[row] for row in rows])
            out[slot][str(k)] = compact if len(rows) == len(ids) else _padded(compact, rows, len(ids))
    return out


def _padded(compact: Params, rows: Sequence[int], count: int) -> Params:
    """Leaves (rows, ...) -> (count, ...): each at its row, zeros elsewhere."""
    return jax.tree.map(
        lambda leaf: jnp.zeros((count, *leaf.shape[1:]), leaf.dtype).at[np.array(rows)].set(leaf, unique_indices=True),
        compact,
    )


def _run_unrolled(
    spec: ModelSpec, segment: Segment, weights: Any, scales: Scales, state: State, context: Context, block: BlockFn
):
    rows = []
    for k, (i, p) in enumerate(zip(segment.ids, weights, strict=True)):
        state, taps = block(as_block(spec.blocks[i]), p, state, context, _at(scales, k))
        rows.append(taps)
    return state, _stacked_rows(rows)


def _run_periodic(
    spec: ModelSpec, segment: Segment, weights: Any, scales: Scales, state: State, context: Context, block: BlockFn
):
    group = Segment("unroll", segment.ids[: segment.period])

    def body(state: State, inputs: tuple[Any, Scales]) -> tuple[State, Taps]:
        one, scale = inputs
        return _run_unrolled(spec, group, one, scale, state, context, block)

    by_group = None if scales is None else scales.reshape(-1, segment.period, *scales.shape[1:])
    state, taps = jax.lax.scan(body, state, (weights, by_group))  # taps (groups, period, b, n, d)
    return state, _flat_rows(taps)


def _run_kinds(
    spec: ModelSpec, segment: Segment, weights: Any, scales: Scales, state: State, context: Context, block: BlockFn
):
    shape, which = _kinds(spec, segment.ids)

    def body(state: State, inputs: tuple[Params, dict[str, jax.Array], Scales]) -> tuple[State, Taps]:
        p, chosen, scale = inputs
        return block(shape, {slot: {**p[slot], WHICH: chosen[slot]} for slot in p}, state, context, scale)

    return jax.lax.scan(body, state, (weights, {slot: jnp.array(numbers) for slot, numbers in which.items()}, scales))


def _run_parallel(
    spec: ModelSpec, segment: Segment, weights: Any, scales: Scales, state: State, context: Context, block: BlockFn
):
    step = segment.step or Step(segment.ids)
    rows = []
    for _ in range(step.loops):
        state, taps = _run_step(spec, step, weights, _at(scales, 0), state, context, block)
        rows.append(taps)
    return state, _joined(rows)


def _run_parallel_scan(
    spec: ModelSpec, segment: Segment, weights: Any, scales: Scales, state: State, context: Context, block: BlockFn
):
    step = segment.step or Step(segment.ids)

    def body(state: State, inputs: tuple[Any, Scales]) -> tuple[State, Taps]:
        one, scale = inputs
        return _run_step(spec, step, one, scale, state, context, block)

    state, taps = jax.lax.scan(body, state, (weights, scales))  # taps (steps, m, b, n, d)
    return state, _flat_rows(taps)


def _run_step(spec: ModelSpec, step: Step, weights: Any, scale: Scales, state: State, context: Context, block: BlockFn):
    """One pass through a step of several blocks, whose definition is `Step`'s. Returns the state and taps (m, b, n, d)."""
    plain, projection = weights
    outs = [block(as_block(spec.blocks[i]), p, state, context, scale) for i, p in zip(step.blocks, plain, strict=True)]
    return merged(step, state, [out for out, _ in outs], projection), _stacked_rows([taps for _, taps in outs])


def _at(scales: Scales, index: int) -> Scales:
    return None if scales is None else scales[index]


_RUN = {
    "unroll": _run_unrolled, "periodic": _run_periodic, "kinds": _run_kinds, "parallel": _run_parallel,
    "parallel_scan": _run_parallel_scan,
}  # fmt: skip


# --- Taps: blocks of different kinds have different ones ----------------------------------------------------------------


def _by_name(rows: Sequence[Taps]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for taps in rows for name in taps)
    return {name: [taps[name] for taps in rows if name in taps] for name in names}


def _stacked_rows(rows: Sequence[Taps]) -> Taps:
    """Values of single blocks (b, n, d) as rows (l, b, n, d)."""
    return {name: stack(values) for name, values in _by_name(rows).items()}


def _joined(rows: Sequence[Taps]) -> Taps:
    """Rows (l, b, n, d) of several segments one after the other."""
    return {name: jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *values) for name, values in _by_name(rows).items()}


def _flat_rows(taps: Taps) -> Taps:
    """(groups, rows, b, n, d) -> (groups x rows, b, n, d)."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), taps)
