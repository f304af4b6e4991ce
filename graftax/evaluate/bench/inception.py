"""How fast images pass the network of FID: the time that an evaluation takes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from graftax.evaluate.bench.rows import Rows
from graftax.evaluate.bench.timing import interleaved, load
from graftax.nets.convolving import compile_options
from graftax.nets.inception import features, init


def bench_inception(batches: tuple[int, ...] = (1, 16, 64), size: int = 256, rounds: int = 5) -> Rows:
    """InceptionV3 as FID uses it on images of `size` x `size`, resize included, on one device in float32.

    Columns: batch, size, median_ms, images_per_s (at the median), hours_50k (for 50,000 images), spread, load.
    """
    params, run = jax.jit(init)(jax.random.key(0)), jax.jit(features, compiler_options=compile_options())
    rows: Rows = []
    for batch in batches:
        images = jnp.zeros((batch, size, size, 3), jnp.uint8)
        before, time = load(), interleaved({"features": lambda images=images: run(params, images)}, rounds)["features"]
        rate = batch / time.median
        rows.append(
            {
                "batch": batch, "size": size, "median_ms": 1e3 * time.median, "images_per_s": rate,
                "hours_50k": 50_000 / rate / 3600, "spread": time.spread, "load": before,
            }
        )  # fmt: skip
    return rows
