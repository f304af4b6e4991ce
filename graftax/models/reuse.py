"""Passes that take what blocks change from an earlier pass: caches of inference, for any model and any program.

From one step of a sampler to the next a network is asked nearly the same, and its blocks change their state by nearly the
same. What the steps of a program add to the state is kept from call to call, and taken instead of computing it where a
table says so, or where the first block finds that little has moved.

Sources: SmoothCache (Liu et al. 2024, arXiv 2411.10510) for tables from the errors of calibration samples; the test of the
first block's residual is that of ParaAttention's "First Block Cache", in the measure of TeaCache (Liu et al. 2024, arXiv
2411.19108), mean |difference| over mean |value|.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax.blocks import State
from graftax.models.backbone import Cond
from graftax.models.forward import embed, head, prepare_params
from graftax.models.sizes import at_size
from graftax.models.stack import steps_of
from graftax.ops.base import Params
from graftax.spec import ModelSpec

Run = Callable[[State], State]
"""One step of a program, or several."""


class First(NamedTuple):
    """What `by_first_block` keeps of the last pass that was computed whole.

    Attributes:
        change: what the first step added to the state.
        rest: what all others added.
    """

    change: State
    rest: State


def prepare_reusing(spec: ModelSpec, params: Params) -> Params:
    """`graftax.models.forward.prepare_params` with every step of the program by itself."""
    return prepare_params(spec, params, "unroll", range(len(spec.program)))


def inside(
    spec: ModelSpec, prepared: Params, x: jax.Array, t: jax.Array, cond: Cond, dtype: DTypeLike | None = None
) -> tuple[list[Run], State, Callable[[State], jax.Array]]:
    """A pass in three parts: the steps of the program, the state that they begin with, and from their state to the output.

    `prepared` by `prepare_reusing`; the rest as in `graftax.models.forward.forward`.
    """
    spec = at_size(spec, x)
    state, context = embed(spec, prepared, x, t, cond, dtype)
    runs = steps_of(spec, prepared["blocks"], context, dtype)
    return runs, state, lambda state: head(spec, prepared, state, context, x, t, dtype)


def by_table(
    runs: Sequence[Run], state: State, computed: jax.Array | None, changes: Sequence[State] | None
) -> tuple[State, list[State]]:
    """The state after all `runs`, and what each has added to it.

    computed (runs,) bool: which ones run; the others add what they did in `changes`. None: all run.
    """
    found: list[State] = []
    for i, run in enumerate(runs):
        if computed is None or changes is None:
            state, change = _changed(run, state)
        else:
            state, change = jax.lax.cond(computed[i], _running(run), _reusing, state, changes[i])
        found.append(change)
    return state, found


def by_first_block(
    runs: Sequence[Run], state: State, threshold: float, must: jax.Array | bool, before: First | None
) -> tuple[State, First]:
    """The state after all `runs`, of which the first always runs, and the others where it changed its state by other numbers
    than `before`: mean |difference| at least `threshold` times mean |value|, over the whole batch, or `must` ().

    Returns `before` where it was used, so that small changes add up until they are seen.
    """
    after, change = _changed(runs[0], state)

    def whole(state: State) -> tuple[State, First]:
        end = state
        for run in runs[1:]:
            end = run(end)
        return end, First(change, _less(end, state))

    if before is None:
        return whole(after)
    moved = _size(_less(change, before.change)) >= threshold * _size(before.change)
    return jax.lax.cond(moved | must, whole, lambda state: (_plus(state, before.rest), before), after)


def _running(run: Run) -> Callable[[State, State], tuple[State, State]]:
    return lambda state, kept: _changed(run, state)


def _reusing(state: State, kept: State) -> tuple[State, State]:
    return _plus(state, kept), kept


def _changed(run: Run, state: State) -> tuple[State, State]:
    after = run(state)
    return after, _less(after, state)


def _plus(left: State, right: State) -> State:
    return jax.tree.map(jnp.add, left, right)


def _less(left: State, right: State) -> State:
    return jax.tree.map(jnp.subtract, left, right)


def _size(state: State) -> jax.Array:
    """Mean |value| over all streams."""
    return sum(jnp.abs(leaf).sum() for leaf in state.values()) / sum(leaf.size for leaf in state.values())  # pyright: ignore
