"""What a model costs in time, measured on the devices at hand: by operator, by block, as a whole, per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax.evaluate.bench.timing import Timing, interleaved
from graftax.evaluate.roofline import WHOLE, operator_fn
from graftax.models import Model
from graftax.models.stack import apply_stack
from graftax.spec import SLOTS, Step, block_key
from graftax.surgery.select import compact

WARMUP = 2


def latencies(model: Model, batch: int, rounds: int, dtype: DTypeLike | None = None) -> dict[str, Timing]:
    """Wall times of `rounds` calls, all candidates taking turns after two that do not count.

    Keys: "mixer KIND" and "mlp KIND" for one run of every distinct operator, "block IDS" for one run of every distinct
    block, and "whole model" for a forward pass; each on (batch, n, d) tokens or `batch` images. Raises `BadInput` where
    `rounds` is below 1.
    """
    spec = model.spec
    tokens = jax.random.normal(jax.random.key(0), (batch, spec.tokens, spec.hidden_size))
    candidates = {**_operators(model, tokens, dtype), **_blocks(model, tokens, dtype)}
    x = jax.random.normal(jax.random.key(1), (batch, spec.input_size, spec.input_size, spec.in_channels))
    t, y = jnp.full(batch, 500.0), jnp.zeros(batch, jnp.int32)
    candidates[WHOLE] = lambda: model.apply(x, t, y, dtype=dtype)[0]
    return interleaved(candidates, rounds, WARMUP)


def seconds_per_image(forward: Timing, batch: int, steps: int, guided: bool) -> float:
    """Sampling one image of a full batch: `steps` forward passes, with guidance twice as many, by the median."""
    return forward.median * steps * (2 if guided else 1) / batch


def _operators(model: Model, tokens: jax.Array, dtype: DTypeLike | None) -> dict[str, Callable[[], Any]]:
    """One run of the first operator of each kind."""
    found: dict[str, Callable[[], Any]] = {}
    for slot in SLOTS:
        for i, block in enumerate(model.spec.blocks):
            op = getattr(block, slot)
            if f"{slot} {op}" not in found:
                fn, params = jax.jit(operator_fn(model.spec, op, dtype)[0]), model.params["blocks"][block_key(i)][slot]
                found[f"{slot} {op}"] = lambda fn=fn, params=params: fn(params, tokens)
    return found


def _blocks(model: Model, tokens: jax.Array, dtype: DTypeLike | None) -> dict[str, Callable[[], Any]]:
    """One run of the first block of each kind; its name has the numbers of all that are like it."""
    spec, c = model.spec, jax.random.normal(jax.random.key(2), (tokens.shape[0], tokens.shape[2]))
    alike: dict[Any, list[int]] = {}
    for i, block in enumerate(spec.blocks):
        alike.setdefault(block, []).append(i)
    return {f"block {compact(ids)}": _block(model, ids, tokens, c, dtype) for ids in alike.values()}


def _block(model: Model, ids: Sequence[int], tokens: jax.Array, c: jax.Array, dtype: DTypeLike | None) -> Callable[[], Any]:
    single = model.spec.replace(program=(Step((ids[0],)),))
    run = jax.jit(lambda blocks: apply_stack(single, blocks, tokens, c, dtype=dtype)[0])
    return lambda: run(model.params["blocks"])
