"""What compiling a train step costs: the plans of the block stack on a model of mixed blocks."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from graftax import ops
from graftax.diffusion import Process
from graftax.evaluate.bench.rows import Rows
from graftax.evaluate.bench.timing import load, temp_mb
from graftax.models.dit import dit_spec, param_shapes
from graftax.spec import ModelSpec, op
from graftax.train.diffusion_task import diffusion_loss

HEADS = 6


def bench_compile(
    depth: int = 28, width: int = 192, plans: tuple[str, ...] = ("kind_scan", "unroll"), seed: int = 0
) -> Rows:
    """Compiling one train step (diffusion loss, gradient, AdamW) with Hyena-X in a random half of the blocks.

    Nothing is run, so the width hardly matters. Columns: plan, depth, lowered_lines (StableHLO), hlo_lines (optimised),
    lower_s, compile_s, temp_mb (working memory of the step), load. Raises `BadInput` where a plan does not fit.
    """
    spec = random_graft(depth, width, seed)
    return [_measure(spec, plan) for plan in plans]


def random_graft(depth: int, width: int, seed: int) -> ModelSpec:
    """A DiT of 64 tokens whose attention is Hyena-X in half of the blocks, drawn from `seed`."""
    spec = dit_spec(input_size=16, patch_size=2, hidden_size=width, depth=depth, num_heads=HEADS)
    hyena = ops.resolve(op("hyena_x"), "mixer", width, spec.tokens, HEADS)
    chosen = np.random.default_rng(seed).permutation(depth)[: depth // 2]
    blocks = [dataclasses.replace(block, mixer=hyena) if i in chosen else block for i, block in enumerate(spec.blocks)]
    return spec.replace(blocks=tuple(blocks))


def _measure(spec: ModelSpec, plan: str) -> dict[str, Any]:
    before, start = load(), time.perf_counter()
    lowered = _lower(spec, plan)
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    return {
        "plan": plan, "depth": spec.depth, "lowered_lines": _lines(lowered.as_text()),
        "hlo_lines": _lines(compiled.as_text()), "lower_s": middle - start, "compile_s": end - middle,
        "temp_mb": temp_mb(compiled), "load": before,
    }  # fmt: skip


def _lower(spec: ModelSpec, plan: str, batch: int = 4) -> jax.stages.Lowered:
    loss, optimiser = diffusion_loss(spec, Process(), plan=plan), optax.adamw(1e-4)

    def step(params: Any, opt_state: Any, batch: Any, key: jax.Array) -> Any:
        (value, _), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
        updates, opt_state = optimiser.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    params = param_shapes(spec)
    image = jax.ShapeDtypeStruct((batch, spec.input_size, spec.input_size, spec.in_channels), jnp.float32)
    label = jax.ShapeDtypeStruct((batch,), jnp.int32)
    state = jax.eval_shape(optimiser.init, params)
    return jax.jit(step).lower(params, state, {"image": image, "label": label}, jax.eval_shape(lambda: jax.random.key(0)))


def _lines(text: str | None) -> int:
    return (text or "").count("\n")
