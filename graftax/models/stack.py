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
from jax.typing import DTypeLike

from graftax import ops
from graftax.errors import BadInput
from graftax.models.block import TAPS, Taps, block_body
from graftax.models.embed import call
from graftax.models.plans import Segment, segments
from graftax.spec import SLOTS, ModelSpec, OpSpec, Step, block_key

Params = dict[str, Any]
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
    spec: ModelSpec, blocks: Params, x: jax.Array, c: jax.Array, *, plan: str = "auto", capture: Sequence[str] = (),
    dtype: DTypeLike | None = None, remat: str = "none",
) -> tuple[jax.Array, Taps]:  # fmt: skip
    """Run the program of `spec` on tokens x (b, n, d) under conditioning c (b, d).

    `blocks` is `params["blocks"]`. Returns x (b, n, d) and taps[name] (l, b, n, d), one row per block run, in the order
    of the program. Raises `BadInput` for unknown plans, taps or remat policies.
    """
    return run_stack(spec, prepare(spec, blocks, plan), x, c, plan=plan, capture=capture, dtype=dtype, remat=remat)


def prepare(spec: ModelSpec, blocks: Params, plan: str = "auto") -> Prepared:
    """Weights arranged for `plan`, one entry per segment."""
    return tuple(_arrange(spec, blocks, segment) for segment in segments(spec, plan))


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
        x, taps = block_body(
            x, _adaln(p["adaln"], c, dtype), _operator(spec, mixer, p["mixer"], dtype), _operator(spec, mlp, p["mlp"], dtype)
        )
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


def _weights(blocks: Params, ids: Sequence[int]) -> list[Params]:
    return [blocks[block_key(i)] for i in ids]


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _arrange(spec: ModelSpec, blocks: Params, segment: Segment) -> Any:
    if segment.mode == "periodic":
        return [_stack(_weights(blocks, segment.ids[j :: segment.period])) for j in range(segment.period)]
    if segment.mode == "kinds":
        return _stack_kinds(spec, blocks, segment.ids)
    return _weights(blocks, segment.ids)


def _kinds(spec: ModelSpec, ids: Sequence[int], slot: str) -> tuple[tuple[OpSpec, ...], list[int]]:
    """The distinct operators of a slot in order of appearance, and which of them each block has."""
    found = [getattr(spec.blocks[i], slot) for i in ids]
    kinds = tuple(dict.fromkeys(found))
    return kinds, [kinds.index(op) for op in found]


def _stack_kinds(spec: ModelSpec, blocks: Params, ids: Sequence[int]) -> Params:
    """Every operator kind gets a row for every block, zeros where the block is of another kind.

    The zeros cost memory (one more copy of the slot per further kind) but keep the gradient a plain unstacking; indexing
    compact stacks inside the loop would make each step of the backward pass rewrite the whole stack.
    """
    weights = _weights(blocks, ids)
    out: Params = {"adaln": _stack([w["adaln"] for w in weights])}
    for slot in SLOTS:
        kinds, which = _kinds(spec, ids, slot)
        out[slot] = {}
        for kind in range(len(kinds)):
            zeros = jax.tree.map(jnp.zeros_like, weights[which.index(kind)][slot])
            rows = [w[slot] if k == kind else zeros for w, k in zip(weights, which, strict=True)]
            out[slot][str(kind)] = _stack(rows)
    return out


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
        outs = [block(spec.blocks[i].mixer, spec.blocks[i].mlp, p, x, c) for i, p in zip(step.blocks, weights, strict=True)]
        total = sum(out - x for out, _ in outs)
        x = x + step.alpha * (total / len(outs) if step.merge == "mean" else total)
        rows += [taps for _, taps in outs]
    return x, _stack(rows)


_RUN = {"unroll": _run_unrolled, "periodic": _run_periodic, "kinds": _run_kinds, "parallel": _run_parallel}
