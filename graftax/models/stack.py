"""The block stack as a function over (spec, params): plans, taps, rematerialisation.

`prepare` arranges the weights as a plan needs them (stacked for scans); `run_stack` runs them. They are two functions so
that a sampler prepares once, outside its loop over timesteps. `apply_stack` is both in one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from graftax import ops
from graftax.errors import BadInput
from graftax.models.block import TAPS, Taps, block_body
from graftax.models.collect import ADALN, Params, one_block, stacked
from graftax.models.embed import call
from graftax.models.merge import project
from graftax.models.plans import Segment, segments
from graftax.spec import SLOTS, ModelSpec, OpSpec, Step, merge_key

Prepared = tuple[Any, ...]
Kinds = OpSpec | tuple[OpSpec, ...]
BlockFn = Callable[[Kinds, Kinds, Params, jax.Array, jax.Array], tuple[jax.Array, Taps]]
KIND = "kind"
"""Where `kind_scan` tells a block's operator which of several kinds it is."""

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
}
"""Rematerialisation policies: keep all activations, none but block inputs, or matmul results only."""


def apply_stack(
    spec: ModelSpec, blocks: Params, x: jax.Array, c: jax.Array, *, merges: Params | None = None, plan: str = "auto",
    capture: Sequence[str] = (), dtype: DTypeLike | None = None, remat: str = "none",
) -> tuple[jax.Array, Taps]:  # fmt: skip
    """Run the program of `spec` on tokens x (b, n, d) under conditioning c (b, d).

    `blocks` is `params["blocks"]`, plain or collected (`graftax.models.collect`); `merges` is `params["merges"]`, where
    the program has learned projections. Returns x (b, n, d) and taps[name] (l, b, n, d), one row per block run, in the
    order of the program. Raises `BadInput` for unknown plans, taps or remat policies.
    """
    prepared = prepare(spec, blocks, plan, merges)
    return run_stack(spec, prepared, x, c, plan=plan, capture=capture, dtype=dtype, remat=remat)


def prepare(spec: ModelSpec, blocks: Params, plan: str = "auto", merges: Params | None = None) -> Prepared:
    """Weights arranged for `plan`, one entry per segment."""
    return tuple(_arrange(spec, blocks, merges or {}, segment) for segment in segments(spec, plan))


def run_stack(
    spec: ModelSpec, prepared: Prepared, x: jax.Array, c: jax.Array, *, plan: str = "auto", capture: Sequence[str] = (),
    dtype: DTypeLike | None = None, remat: str = "none",
) -> tuple[jax.Array, Taps]:  # fmt: skip
    """`apply_stack` on weights that `prepare` arranged for the same plan."""
    _check(capture, remat)
    block = _block_fn(spec, tuple(capture), dtype, remat)
    rows: list[Taps] = []
    for segment, weights in zip(segments(spec, plan), prepared, strict=True):
        x, taps = _RUN[segment.mode](spec, segment, weights, x, c, block)
        rows.append(taps)
    return x, {name: jnp.concatenate([taps[name] for taps in rows]) for name in capture}


def _check(capture: Sequence[str], remat: str) -> None:
    unknown = [name for name in capture if name not in TAPS]
    if unknown:
        raise BadInput(f"capture: unknown taps {unknown}, expected some of {TAPS}")
    if remat not in REMAT:
        raise BadInput(f"remat: got {remat!r}, expected one of {tuple(REMAT)}")


# --- One block -------------------------------------------------------------------------------------------------------


def _block_fn(spec: ModelSpec, capture: tuple[str, ...], dtype: DTypeLike | None, remat: str) -> BlockFn:
    """The function that runs one block, given its two operators, its weights, x and c; only captured taps leave it."""

    def block(mixer: Kinds, mlp: Kinds, p: Params, x: jax.Array, c: jax.Array) -> tuple[jax.Array, Taps]:
        first, second = _operator(spec, mixer, p["mixer"], dtype), _operator(spec, mlp, p["mlp"], dtype)
        x, taps = block_body(x, _adaln(p["adaln"], c, dtype), first, second, spec.compat)
        return x, {name: taps[name] for name in capture}

    policy = REMAT[remat]
    return block if policy is None else jax.checkpoint(block, policy=policy, static_argnums=(0, 1))  # pyright: ignore


def _adaln(p: Params, c: jax.Array, dtype: DTypeLike | None) -> jax.Array:
    return call(nn.Dense(p["kernel"].shape[-1], dtype=dtype), p, nn.silu(c))


def _operator(spec: ModelSpec, op: Kinds, p: Params, dtype: DTypeLike | None) -> Callable[[jax.Array], jax.Array]:
    """The operator as a function of its input; for a tuple of kinds, a switch on the traced index `p[KIND]`."""
    if isinstance(op, OpSpec):
        return functools.partial(call, ops.build(op, spec, dtype), p)
    branches = [_operator(spec, kind, p[str(i)], dtype) for i, kind in enumerate(op)]
    return branches[0] if len(branches) == 1 else lambda u: jax.lax.switch(p[KIND], branches, u)


# --- Segments: how weights are arranged, how they run ------------------------------------------------------------------


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _arrange(spec: ModelSpec, blocks: Params, merges: Params, segment: Segment) -> Any:
    if segment.mode == "periodic":
        return _stack_groups(spec, blocks, segment.ids, segment.period)
    if segment.mode == "kinds":
        return _stack_kinds(spec, blocks, segment.ids)
    if segment.mode == "parallel_scan":
        count = len(segment.step.blocks)  # pyright: ignore[reportOptionalMemberAccess]
        steps = [segment.ids[k : k + count] for k in range(0, len(segment.ids), count)]
        return _stack_groups(spec, blocks, segment.ids, count), _stack([_merge(merges, segment, ids) for ids in steps])
    plain = [one_block(spec, blocks, i) for i in segment.ids]
    return (plain, _merge(merges, segment, segment.ids)) if segment.mode == "parallel" else plain


def _stack_groups(spec: ModelSpec, blocks: Params, ids: Sequence[int], period: int) -> list[Params]:
    """For each place in a group of `period` blocks, the weights of the blocks there: leaves (groups, ...)."""
    places = (ids[j::period] for j in range(period))
    return [{part: stacked(spec, blocks, part, members) for part in (ADALN, *SLOTS)} for members in places]


def _merge(merges: Params, segment: Segment, ids: tuple[int, ...]) -> Params:
    """The projection that merges blocks `ids`, {} where the segment's steps have none."""
    return merges[merge_key(ids)] if segment.step and segment.step.merge == "project" else {}


def _kinds(spec: ModelSpec, ids: Sequence[int], slot: str) -> tuple[tuple[OpSpec, ...], list[int]]:
    """The distinct operators of a slot in order of appearance, and which of them each block has."""
    found = [getattr(spec.blocks[i], slot) for i in ids]
    kinds = tuple(dict.fromkeys(found))
    return kinds, [kinds.index(op) for op in found]


def _stack_kinds(spec: ModelSpec, blocks: Params, ids: Sequence[int]) -> Params:
    """Every operator kind gets a row for every block, zeros where the block is of another kind.

    The zeros cost memory (one more copy of the slot per further kind) but keep the gradient linear in the depth; indexing
    compact stacks inside the loop would make each step of the backward pass rewrite the whole stack.
    """
    out: Params = {ADALN: stacked(spec, blocks, ADALN, ids)}
    for slot in SLOTS:
        kinds, which = _kinds(spec, ids, slot)
        out[slot] = {}
        for kind in range(len(kinds)):
            rows = [row for row, k in enumerate(which) if k == kind]
            compact = stacked(spec, blocks, slot, [ids[row] for row in rows])
            out[slot][str(kind)] = compact if len(kinds) == 1 else _padded(compact, rows, len(ids))
    return out


def _padded(compact: Params, rows: Sequence[int], count: int) -> Params:
    """Leaves (rows, ...) -> (count, ...): each at its row, zeros elsewhere."""
    return jax.tree.map(
        lambda leaf: jnp.zeros((count, *leaf.shape[1:]), leaf.dtype).at[np.array(rows)].set(leaf, unique_indices=True),
        compact,
    )


def _run_unrolled(spec: ModelSpec, segment: Segment, weights: Any, x: jax.Array, c: jax.Array, block: BlockFn):
    rows = []
    for i, p in zip(segment.ids, weights, strict=True):
        x, taps = block(spec.blocks[i].mixer, spec.blocks[i].mlp, p, x, c)
        rows.append(taps)
    return x, _stack(rows)


def _run_periodic(spec: ModelSpec, segment: Segment, weights: Any, x: jax.Array, c: jax.Array, block: BlockFn):
    group = segment.ids[: segment.period]

    def body(x: jax.Array, ps: Any) -> tuple[jax.Array, Taps]:
        return _run_unrolled(spec, Segment("unroll", group), ps, x, c, block)

    x, taps = jax.lax.scan(body, x, weights)  # taps (groups, period, b, n, d)
    return x, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), taps)


def _run_kinds(spec: ModelSpec, segment: Segment, weights: Any, x: jax.Array, c: jax.Array, block: BlockFn):
    (mixers, mixer), (mlps, mlp) = (_kinds(spec, segment.ids, slot) for slot in SLOTS)

    def body(x: jax.Array, inputs: tuple[Params, jax.Array, jax.Array]) -> tuple[jax.Array, Taps]:
        p, mixer, mlp = inputs
        p = {**p, "mixer": {**p["mixer"], KIND: mixer}, "mlp": {**p["mlp"], KIND: mlp}}
        return block(mixers, mlps, p, x, c)

    return jax.lax.scan(body, x, (weights, jnp.array(mixer), jnp.array(mlp)))


def _run_parallel(spec: ModelSpec, segment: Segment, weights: Any, x: jax.Array, c: jax.Array, block: BlockFn):
    step = segment.step or Step(segment.ids)
    rows = []
    for _ in range(step.loops):
        x, taps = _run_step(spec, step, weights, x, c, block)
        rows.append(taps)
    return x, jax.tree.map(lambda *taps: jnp.concatenate(taps), *rows)


def _run_parallel_scan(spec: ModelSpec, segment: Segment, weights: Any, x: jax.Array, c: jax.Array, block: BlockFn):
    step = segment.step or Step(segment.ids)
    x, taps = jax.lax.scan(lambda x, one: _run_step(spec, step, one, x, c, block), x, weights)  # taps (steps, m, b, n, d)
    return x, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), taps)


def _run_step(spec: ModelSpec, step: Step, weights: Any, x: jax.Array, c: jax.Array, block: BlockFn):
    """One pass through a step of several blocks, whose definition is `Step`'s. Returns x and taps (m, b, n, d)."""
    plain, merge = weights
    outs = [block(spec.blocks[i].mixer, spec.blocks[i].mlp, p, x, c) for i, p in zip(step.blocks, plain, strict=True)]
    if step.merge == "project":
        change = project(merge, [out for out, _ in outs]) - x
    else:
        change = sum(out - x for out, _ in outs) / (len(outs) if step.merge == "mean" else 1)
    return x + step.alpha * change, _stack([taps for _, taps in outs])


_RUN = {
    "unroll": _run_unrolled, "periodic": _run_periodic, "kinds": _run_kinds, "parallel": _run_parallel,
    "parallel_scan": _run_parallel_scan,
}  # fmt: skip
