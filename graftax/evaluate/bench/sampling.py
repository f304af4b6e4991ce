"""The sampler's overhead: a whole trajectory against as many single forward passes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from graftax.api import sample
from graftax.diffusion import Sampler
from graftax.evaluate.bench.forward import published
from graftax.evaluate.bench.rows import Rows
from graftax.evaluate.bench.timing import interleaved, load
from graftax.models import Model, random_params
from graftax.models.backbone import find
from graftax.models.forward import forward_prepared, prepare_params


def bench_sampling(
    variant: str = "DiT-S/2", depth: int | None = None, steps: int = 250, batch: int = 1, rounds: int = 3,
    sampler: Sampler = "ddpm", cfg_scale: float = 1.5, plan: str = "unroll",
) -> Rows:  # fmt: skip
    """`graftax.sample` against `steps` calls of the jitted forward pass on the same batch (doubled by guidance).

    `depth` keeps only so many blocks. Columns: variant, sampler, steps, batch, sample_s and forwards_s (medians),
    overhead (sample over forwards, less 1, median over rounds), spread, load. Raises `BadInput` as `graftax.sample` does.
    """
    spec = published(variant, depth=depth)
    model = Model(spec, random_params(spec, jax.random.key(0)))
    labels = jnp.zeros(batch, jnp.int32)
    images = batch if cfg_scale == 1 else 2 * batch
    x, t, cond = jnp.zeros((images, *spec.image_shape)), jnp.zeros(images), find(spec).example(spec, images)
    forward = jax.jit(functools.partial(forward_prepared, spec))
    prepared = prepare_params(spec, model.params, plan)
    draw = functools.partial(sample, model, labels, sampler=sampler, steps=steps, cfg_scale=cfg_scale, plan=plan)
    candidates = {"sample": draw, "forwards": lambda: [forward(prepared, x, t, cond)[0] for _ in range(steps)]}
    before, times = load(), interleaved(candidates, rounds)
    return [
        {
            "variant": variant, "sampler": sampler, "steps": steps, "batch": batch, "sample_s": times["sample"].median,
            "forwards_s": times["forwards"].median, "overhead": times["sample"].over(times["forwards"]) - 1,
            "spread": times["sample"].spread, "load": before,
        }
    ]  # fmt: skip
