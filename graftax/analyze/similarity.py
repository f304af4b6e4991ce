"""How alike a model's residual states are from layer to layer, and the groups of layers that this shows.

Source: "Transformer Layers as Painters" (arXiv 2407.09298), Section 3.1 and its code: every pair of states by the cosine of
whole samples, averaged. The paper picks groups by eye; here they come from `segment`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from graftax.analyze.inputs import Input
from graftax.blocks import as_state
from graftax.errors import BadInput
from graftax.models import Cond, Model
from graftax.models.forward import embed, prepare_params
from graftax.models.sizes import at_size
from graftax.models.stack import run_stack
from graftax.ops.base import Params
from graftax.progress import Progress
from graftax.spec import ModelSpec

FORMS = ("sample", "token")
ALL = "all"
"""What the tokens of all streams together are called."""

Group = tuple[int, int]
"""States lo .. hi - 1."""


def state_similarity(
    model: Model, inputs: Iterable[Input], *, form: str = "sample", dtype: DTypeLike | None = None, total: int = 0
) -> np.ndarray:
    """Cosine similarity of the T + 1 residual states of a program of T steps, all streams together: (T + 1, T + 1) float64.

    As `state_similarities`, which gives every form and every stream in one pass.
    """
    if form not in FORMS:
        raise BadInput(f"similarity form: got {form!r}, expected one of {FORMS}")
    return state_similarities(model, inputs, dtype=dtype, total=total)[ALL, form]


def state_similarities(
    model: Model, inputs: Iterable[Input], *, dtype: DTypeLike | None = None, total: int = 0
) -> dict[tuple[str, str], np.ndarray]:
    """By stream and form, the cosine similarity (T + 1, T + 1) float64 of the residual states of a program of T steps.

    State i is what step i reads, state T what the last one leaves, before the final norm. Form "sample" takes all tokens and
    channels of a sample as one vector, as the paper does; "token" compares token by token, where a few tokens of large norm
    cannot decide for all. Streams are `ALL`, the tokens of all together, and where there are several, each by itself ("img",
    "txt"). Averaged over samples, hence over inputs and times. `inputs`: batches (x_t, t, conditions), such as
    `graftax.analyze.trajectory` gives; `total`: their number, to show progress (0: none shown). Raises `BadInput` where
    there is no input.
    """
    prepared, compare = prepare_params(model.spec, model.params), jax.jit(partial(_compare, model.spec, dtype))
    found: dict[tuple[str, str], np.ndarray] = {}
    count = 0
    with Progress(total, "similarity", unit="batch", show=total > 0) as progress:
        for x, t, cond in inputs:
            for name, sums in compare(prepared, x, t, cond).items():
                found[name] = found.get(name, 0) + np.asarray(sums, np.float64)
            count += len(t)
            progress.advance()
    if not count:
        raise BadInput("similarity: no inputs, expected at least one batch")
    return {name: sums / count for name, sums in found.items()}


def segment(similarity: np.ndarray, groups: int | None = 3) -> tuple[Group, ...]:
    """The best cut of the states into contiguous groups, ((0, a), (a, b), ...), half-open.

    The criterion is that of kernel change-point detection (Harchaoui and Cappe 2007) with the cosine as kernel: each group
    costs the scatter of its states about their own mean, |g| - sum_ij S_ij / |g|, and the sum over groups is minimal, found
    exactly by dynamic programming. `groups` 3 gives the paper's first, middle and last; None takes the fewest that explain
    90 % of the scatter of all states. A cut between states i - 1 and i says that step i - 1 leads from one group to the
    other. similarity (s, s), symmetric. Raises `BadInput` where there are more groups than states.
    """
    s = len(similarity)
    if groups is not None and not 1 <= groups <= s:
        raise BadInput(f"groups: got {groups} of {s} states, expected 1..{s}")
    cost = _scatter(similarity)
    best, cuts = _partitions(cost, groups or s)
    if groups is None:
        enough = [k for k in range(1, s + 1) if best[k, s] <= 0.1 * cost[0, s]]
        groups = enough[0]
    ends = [s]
    for k in range(groups, 0, -1):
        ends.append(int(cuts[k, ends[-1]]))
    return tuple(zip(ends[:0:-1], ends[-2::-1], strict=True))


def contrast(similarity: np.ndarray, groups: Sequence[Group]) -> float:
    """Mean similarity of different states within groups less that of states in different ones: how clear the groups are.

    0 where no group has two states or there is one group alone.
    """
    label = np.repeat(np.arange(len(groups)), [hi - lo for lo, hi in groups])
    alike, other = label[:, None] == label, ~np.eye(len(label), dtype=bool)
    if not (alike & other).any() or alike.all():
        return 0.0
    return float(similarity[alike & other].mean() - similarity[~alike].mean())


def residual_states(
    spec: ModelSpec, dtype: DTypeLike | None, prepared: Params, x: jax.Array, t: jax.Array, cond: Cond
) -> dict[str, jax.Array]:
    """The T + 1 residual states of a pass by stream, `ALL` first: (T + 1, b, n, d) each; weights prepared for a plan."""
    spec = at_size(spec, x)
    state, context = embed(spec, prepared, x, t, cond, dtype)
    last, taps = run_stack(spec, prepared["blocks"], state, context, capture=("block/in",), dtype=dtype)
    first, starts = as_state(taps["block/in"]), np.array(_starts(spec))
    states = {name: jnp.concatenate([first[name][starts], last[name][None]]) for name in last}
    return {ALL: jnp.concatenate(list(states.values()), axis=2), **(states if len(states) > 1 else {})}


def _compare(
    spec: ModelSpec, dtype: DTypeLike | None, prepared: Params, x: jax.Array, t: jax.Array, cond: Cond
) -> dict[tuple[str, str], jax.Array]:
    """The sums over samples of all pairs' cosines, by stream and form: (T + 1, T + 1) each."""
    parts = residual_states(spec, dtype, prepared, x, t, cond)
    flat = {(name, "sample"): part.reshape(*part.shape[:2], 1, -1) for name, part in parts.items()}
    return {key: _cosines(part) for key, part in ({(name, "token"): part for name, part in parts.items()} | flat).items()}


def _cosines(states: jax.Array) -> jax.Array:
    """Of all pairs of states (s, b, n, d), summed over samples, the mean over vectors that are zero in neither: (s, s).

    Padding of an AuraFlow's text begins as zeros, which have no direction. Where nothing else is left, a state is alike
    itself alone.
    """
    norms = jnp.linalg.norm(states, axis=-1, keepdims=True)
    there = (norms[..., 0] > 0).astype(states.dtype)  # (s, b, n)
    states = states / jnp.where(norms > 0, norms, 1)
    sums = jnp.einsum("ibnd,jbnd->bij", states, states, precision=jax.lax.Precision.HIGHEST)
    counts = jnp.einsum("ibn,jbn->bij", there, there, precision=jax.lax.Precision.HIGHEST)
    return jnp.where(counts > 0, sums / jnp.maximum(counts, 1), jnp.eye(len(states))).sum(0)


def _starts(spec: ModelSpec) -> list[int]:
    """The run of a block with which every step begins."""
    lengths = [len(step.blocks) * step.loops for step in spec.program]
    return list(np.cumsum([0, *lengths[:-1]]))


def _scatter(similarity: np.ndarray) -> np.ndarray:
    """Cost (s, s + 1) of every group lo .. hi - 1: its size less the sum of its block over its size; 0 where hi <= lo."""
    s = len(similarity)
    sums = np.zeros((s + 1, s + 1))
    sums[1:, 1:] = similarity.cumsum(0).cumsum(1)
    lo, hi = np.arange(s)[:, None], np.arange(s + 1)
    block = sums[hi, hi] - sums[lo, hi] - sums[hi, lo] + sums[lo, lo]
    size = np.maximum(hi - lo, 1)
    trace = np.concatenate([[0], np.diag(similarity).cumsum()])
    return np.where(hi > lo, trace[hi] - trace[lo] - block / size, 0)


def _partitions(cost: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Least cost (groups + 1, s + 1) of cutting the first states into so many groups, and where the last of them begins."""
    s = len(cost)
    best, cuts = np.full((groups + 1, s + 1), np.inf), np.zeros((groups + 1, s + 1), int)
    best[0, 0] = 0
    for k in range(1, groups + 1):
        for hi in range(k, s + 1):
            options = best[k - 1, k - 1 : hi] + cost[k - 1 : hi, hi]
            cuts[k, hi] = k - 1 + options.argmin()
            best[k, hi] = options.min()
    return best, cuts
