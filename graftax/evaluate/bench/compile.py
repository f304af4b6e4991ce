"""What compiling a train step costs: the plans of the block stack on a model of mixed blocks."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from graftax import ops
from graftax.backbones.dit import dit_spec
from graftax.diffusion import Process
from graftax.evaluate.bench.rows import Row, Rows
from graftax.evaluate.bench.timing import load, temp_mb
from graftax.models import forward, param_shapes
from graftax.models.collect import collect
from graftax.ops.base import Params
from graftax.spec import ModelSpec, op
from graftax.train import OptimiserConfig, diffusion_loss, make_step
from graftax.train.state import create_state

HEADS = 6


def bench_compile(
    depth: int = 28, width: int = 192, plans: tuple[str, ...] = ("kind_scan", "unroll"), seed: int = 0
) -> Rows:
    """Compiling a training step of a DiT with Hyena-X in a random half of the blocks.

    Nothing is run, so the width hardly matters. `step` "plain" is diffusion loss on given times and noise, gradient and
    AdamW; "full" is what fine-tuning runs: it also draws times, noise and dropped labels, clips, averages, and keeps the old
    state where a number is not finite. `weights` says how the state holds the blocks: "collected" by operator, as
    training does, or as the "tree" that is saved, whose leaves the optimiser takes one by one; unrolling is for the latter.

    Columns: plan, step, weights, lowered_lines (StableHLO), hlo_lines (optimised, without its tables of source lines),
    lower_s, compile_s, temp_mb (working memory of the step), load. Raises `BadInput` where a plan does not fit.
    """
    spec = random_graft(depth, width, seed)
    sides = [(plan, full, plan != "unroll") for plan in plans for full in (False, True)]
    return [_measure(spec, *side) for side in sides]


def random_graft(depth: int, width: int, seed: int) -> ModelSpec:
    """A DiT of 64 tokens whose attention is Hyena-X in half of the blocks, drawn from `seed`."""
    spec = dit_spec(input_size=16, patch_size=2, hidden_size=width, depth=depth, num_heads=HEADS)
    hyena = ops.resolve(op("hyena_x"), "mixer", spec.sizes)
    chosen = np.random.default_rng(seed).permutation(depth)[: depth // 2]
    blocks = [block.with_op("mixer", hyena) if i in chosen else block for i, block in enumerate(spec.blocks)]
    return spec.replace(blocks=tuple(blocks))


def _measure(spec: ModelSpec, plan: str, full: bool, collected: bool) -> Row:
    before, start = load(), time.perf_counter()
    lowered = (_full_step if full else _plain_step)(spec, plan, collected)
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    return {
        "plan": plan, "step": "full" if full else "plain", "weights": "collected" if collected else "tree",
        "lowered_lines": lowered.as_text().count("\n"), "hlo_lines": _hlo_lines(compiled), "lower_s": middle - start,
        "compile_s": end - middle, "temp_mb": temp_mb(compiled), "load": before,
    }  # fmt: skip


def _plain_step(spec: ModelSpec, plan: str, collected: bool) -> jax.stages.Lowered:
    process, optimiser = Process(), optax.adamw(1e-4)

    def loss(params: Params, x0: jax.Array, t: jax.Array, y: jax.Array, noise: jax.Array) -> jax.Array:
        out, _ = forward(spec, params, process.q_sample(x0, t, noise), t, {"y": y}, plan=plan)
        return jnp.mean(process.training_losses(out, x0, t, noise)["loss"])

    def step(params: Params, state: optax.OptState, *batch: jax.Array) -> tuple[Params, optax.OptState, jax.Array]:
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value  # pyright: ignore[reportReturnType]

    params = _param_shapes(spec, collected)
    image, label = _batch(spec)
    return jax.jit(step).lower(params, jax.eval_shape(optimiser.init, params), image, label, label, image)


def _full_step(spec: ModelSpec, plan: str, collected: bool) -> jax.stages.Lowered:
    optimiser = OptimiserConfig()
    step = make_step(diffusion_loss(spec, Process(), plan=plan), optimiser)
    state = jax.eval_shape(lambda p: create_state(p, optimiser.build(), ("pos_embed",)), _param_shapes(spec, collected))
    image, label = _batch(spec)
    return jax.jit(step).lower(state, {"image": image, "label": label}, jax.eval_shape(lambda: jax.random.key(0)))


def _param_shapes(spec: ModelSpec, collected: bool) -> Params:
    shapes = param_shapes(spec)
    return jax.eval_shape(lambda params: collect(spec, params), shapes) if collected else shapes


def _batch(spec: ModelSpec, size: int = 4) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of images (b, h, w, c) and labels (b,)."""
    return jax.ShapeDtypeStruct((size, *spec.image_shape), jnp.float32), jax.ShapeDtypeStruct((size,), jnp.int32)


def _hlo_lines(compiled: jax.stages.Compiled) -> int:
    text = compiled.as_text() or ""
    return text[text.find("\n%") :].count("\n")
