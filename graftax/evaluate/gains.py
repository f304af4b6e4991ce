"""What operators take at a model's own size, each by itself: seconds, measured here or by a chip's roofline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from graftax.evaluate.bench.timing import interleaved
from graftax.evaluate.roofline import OperatorAt, distinct_operators, inputs_of, least_seconds, operator_work, roofline
from graftax.models import Model
from graftax.models.stack import runs
from graftax.ops.base import shapes_of
from graftax.progress import Progress
from graftax.spec import ModelSpec, OpSpec
from graftax.train.chips import Chip

Place = tuple[str, str, OpSpec]
"""A kind of block, a slot, an operator there."""


def distinct_places(specs: Iterable[ModelSpec]) -> dict[Place, OperatorAt]:
    """The operators that mix tokens or channels in any of some models of the same sizes, equal ones once."""
    found: dict[Place, OperatorAt] = {}
    for spec in specs:
        for at in distinct_operators(spec):
            block = spec.blocks[at.block]
            found.setdefault((block.kind, at.slot, block[at.slot]), at)
    return found


def measured_seconds(
    model: Model, places: Mapping[Place, OperatorAt], batch: int, rounds: int, dtype: DTypeLike | None = None
) -> tuple[dict[Place, float], float]:
    """Seconds of one run of every operator on random weights, and of a forward pass of the model, medians of `rounds` calls
    that take turns after one that does not count."""
    x, t, cond = inputs_of(model.spec, batch)
    calls: dict[Place | None, Callable[[], Any]] = {place: _call(at, batch, dtype) for place, at in places.items()}
    calls[None] = lambda: model.apply(x, t, dtype=dtype, **cond)[0]
    with Progress(len(calls) * (rounds + 1), "operators", unit="call") as progress:

        def counted(call: Callable[[], Any]) -> None:
            jax.block_until_ready(call())
            progress.advance()

        times = interleaved({place: lambda c=call: counted(c) for place, call in calls.items()}, rounds)
    return {place: times[place].median for place in places}, times[None].median


def roofline_seconds(
    spec: ModelSpec, places: Mapping[Place, OperatorAt], batch: int, chip: Chip, dtype: DTypeLike = jnp.bfloat16
) -> tuple[dict[Place, float], float]:
    """The least seconds of one run of every operator on `chip`, and of all of the model's, one after the other."""

    def least(at: OperatorAt) -> float:
        times = sum(i in at.holders for i in runs(at.spec))
        return operator_work(at, batch, dtype).seconds(chip) / times

    return {place: least(at) for place, at in places.items()}, least_seconds(roofline(spec, batch, dtype), chip)


def _call(at: OperatorAt, batch: int, dtype: DTypeLike | None) -> Callable[[], Any]:
    """One run of an operator on random weights and inputs."""
    rng = np.random.default_rng(0)

    def filled(shape: tuple[int, ...], kind: Any) -> jax.Array:
        whole = not jnp.issubdtype(kind, jnp.floating)  # masks, positions
        return jnp.ones(shape, kind) if whole else jnp.asarray(rng.normal(scale=0.05, size=shape), kind)

    inputs, run = at.inputs(batch, filled), jax.jit(at.run(dtype))
    params = jax.tree.map(lambda leaf: filled(leaf.shape, leaf.dtype), shapes_of(at.operator(None)))
    return lambda: run(params, inputs)
