"""What compiling a train step costs: the plans of the block stack on a model of mixed blocks."""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from graftax import ops
from graftax.diffusion import Process
from graftax.evaluate.bench.rows import Row, Rows
from graftax.evaluate.bench.timing import load, temp_mb
from graftax.models.dit import dit_spec, forward, forward_prepared, param_shapes, prepare_params
from graftax.models.stack import Params
from graftax.spec import ModelSpec, op

HEADS = 6


def bench_compile(
    depth: int = 28, width: int = 192, plans: tuple[str, ...] = ("kind_scan", "unroll"), seed: int = 0
) -> Rows:
    """Compiling one train step (diffusion loss, gradient, AdamW) with Hyena-X in a random half of the blocks.

    Nothing is run, so the width hardly matters. `weights` says what the step takes and returns, optimiser state alike:
    "arranged" as `prepare_params` arranges them for the plan, or the "plain" tree, where a scan must stack them first and
    the optimiser has hundreds of leaves; for unroll the two are one.

    Columns: plan, weights, depth, lowered_lines (StableHLO), hlo_lines (optimised), lower_s, compile_s, temp_mb (working
    memory of the step), load. Raises `BadInput` where a plan does not fit.
    """
    spec = random_graft(depth, width, seed)
    return [
        _measure(spec, plan, arranged) for plan in plans for arranged in ((True,) if plan == "unroll" else (True, False))
    ]


def random_graft(depth: int, width: int, seed: int) -> ModelSpec:
    """A DiT of 64 tokens whose attention is Hyena-X in half of the blocks, drawn from `seed`."""
    spec = dit_spec(input_size=16, patch_size=2, hidden_size=width, depth=depth, num_heads=HEADS)
    hyena = ops.resolve(op("hyena_x"), "mixer", width, spec.tokens, HEADS)
    chosen = np.random.default_rng(seed).permutation(depth)[: depth // 2]
    blocks = [dataclasses.replace(block, mixer=hyena) if i in chosen else block for i, block in enumerate(spec.blocks)]
    return spec.replace(blocks=tuple(blocks))


def _measure(spec: ModelSpec, plan: str, arranged: bool) -> Row:
    before, start = load(), time.perf_counter()
    lowered = _lower(spec, plan, arranged)
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    return {
        "plan": plan, "weights": "arranged" if arranged else "plain", "depth": spec.depth,
        "lowered_lines": _lines(lowered.as_text()), "hlo_lines": _lines(compiled.as_text()), "lower_s": middle - start,
        "compile_s": end - middle, "temp_mb": temp_mb(compiled), "load": before,
    }  # fmt: skip


def _lower(spec: ModelSpec, plan: str, arranged: bool, batch: int = 4) -> jax.stages.Lowered:
    process, optimiser = Process(), optax.adamw(1e-4)
    run = forward_prepared if arranged else forward

    def loss(params: Params, x0: jax.Array, t: jax.Array, y: jax.Array, noise: jax.Array) -> jax.Array:
        out, _ = run(spec, params, process.q_sample(x0, t, noise), t, y, plan=plan)
        return jnp.mean(process.training_losses(out, x0, t, noise)["loss"])

    def step(params: Params, state: optax.OptState, *batch: jax.Array) -> tuple[Params, optax.OptState, jax.Array]:
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value  # pyright: ignore[reportReturnType]

    params = param_shapes(spec)
    if arranged:
        params = jax.eval_shape(lambda params: prepare_params(spec, params, plan), params)
    image = jax.ShapeDtypeStruct((batch, spec.input_size, spec.input_size, spec.in_channels), jnp.float32)
    integers = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return jax.jit(step).lower(params, jax.eval_shape(optimiser.init, params), image, integers, integers, image)


def _lines(text: str | None) -> int:
    return (text or "").count("\n")
