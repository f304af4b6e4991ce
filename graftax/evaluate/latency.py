"""What a model costs in time, measured on the devices at hand: by operator, by block, as a whole, per image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax.blocks import Context, State
from graftax.evaluate.bench.timing import Timing, interleaved
from graftax.evaluate.roofline import WHOLE, OperatorAt, distinct_operators, inputs_of
from graftax.models import Model
from graftax.models.collect import one_block
from graftax.models.forward import embed
from graftax.models.stack import apply_stack
from graftax.spec import Step, members
from graftax.surgery.select import compact

WARMUP = 2


def latencies(model: Model, batch: int, rounds: int, dtype: DTypeLike | None = None) -> dict[str, Timing]:
    """Wall times of `rounds` calls, all candidates taking turns after two that do not count.

    Keys: "mixer KIND" and its like for one run of every distinct operator, "block IDS" for one run of every distinct
    block, and "whole model" for a forward pass; each on the state of `batch` images. Raises `BadInput` where `rounds` is
    below 1.
    """
    spec = model.spec
    x, t, cond = inputs_of(spec, batch)
    state, context = jax.jit(lambda params: embed(spec, params, x, t, cond, dtype))(model.params)
    candidates = {**_operators(model, batch, dtype), **_blocks(model, state, context, dtype)}
    candidates[WHOLE] = lambda: model.apply(x, t, dtype=dtype, **cond)[0]
    return interleaved(candidates, rounds, WARMUP)


def seconds_per_image(forward: Timing, batch: int, steps: int, guided: bool) -> float:
    """Sampling one image of a full batch: `steps` forward passes, with guidance twice as many, by the median."""
    return forward.median * steps * (2 if guided else 1) / batch


def _operators(model: Model, batch: int, dtype: DTypeLike | None) -> dict[str, Callable[[], Any]]:
    """One run of the first operator of each kind."""

    def one(at: OperatorAt) -> Callable[[], Any]:
        inputs = at.inputs(batch, jnp.ones)
        params, run = one_block(model.spec, model.params["blocks"], at.block)[at.slot], jax.jit(at.run(dtype))
        return lambda: run(params, inputs)

    return {at.name: one(at) for at in distinct_operators(model.spec)}


def _blocks(model: Model, state: State, context: Context, dtype: DTypeLike | None) -> dict[str, Callable[[], Any]]:
    """One run of the first block of each kind; its name has the numbers of all that are like it."""

    def one(first: int) -> Callable[[], Any]:
        single = model.spec.replace(program=(Step((first,)),))
        run = jax.jit(lambda *args: apply_stack(single, *args, dtype=dtype)[0])
        return lambda: run(model.params["blocks"], state, context)

    return {f"block {compact(ids)}": one(ids[0]) for ids in members(model.spec.blocks).values()}
