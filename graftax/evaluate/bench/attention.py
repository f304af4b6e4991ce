"""Sliding-window attention in bands against dense attention under the same mask."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from graftax.evaluate.bench.rows import Row, Rows
from graftax.evaluate.bench.timing import interleaved, load, temp_mb
from graftax.ops.attention import attend
from graftax.ops.window import banded_attention


def bench_attention(
    tokens: tuple[int, ...] = (256, 1024, 4096, 16384), window: int = 4, heads: int = 16, head_dim: int = 72,
    dense_up_to: int = 4096, rounds: int = 5,
) -> Rows:  # fmt: skip
    """Forward pass of windowed attention on one image (the defaults are DiT-XL's heads), projections left out.

    The dense side is timed up to `dense_up_to` tokens; its memory is known from compiling. Columns: tokens, banded_ms and
    dense_ms (medians), speedup (median over rounds), spread of the banded side, banded_temp_mb, dense_temp_mb, load.
    """
    return [_row(n, window, heads, head_dim, n <= dense_up_to, rounds) for n in tokens]


def masked_dense(q: jax.Array, k: jax.Array, v: jax.Array, window: int) -> jax.Array:
    """The same attention through all n x n logits: q, k, v (b, n, h, k) -> (b, n, h, k)."""
    token = jnp.arange(q.shape[1])
    return attend(q, k, v, abs(token[:, None] - token) <= window)


def _row(n: int, window: int, heads: int, head_dim: int, with_dense: bool, rounds: int) -> Row:
    shape = jax.ShapeDtypeStruct((1, n, heads, head_dim), jnp.float32)
    sides: dict[str, Callable[..., jax.Array]] = {"banded": banded_attention, "dense": masked_dense}
    compiled = {
        name: jax.jit(functools.partial(side, window=window)).lower(shape, shape, shape).compile()
        for name, side in sides.items()
    }
    rng = np.random.default_rng(0)
    qkv = [jnp.asarray(rng.standard_normal(shape.shape, np.float32)) for _ in range(3)]
    timed = compiled if with_dense else {"banded": compiled["banded"]}
    before = load()
    times = interleaved({name: functools.partial(run, *qkv) for name, run in timed.items()}, rounds)
    return {
        "tokens": n, "banded_ms": 1e3 * times["banded"].median,
        "dense_ms": 1e3 * times["dense"].median if with_dense else None,
        "speedup": times["dense"].over(times["banded"]) if with_dense else None, "spread": times["banded"].spread,
        "banded_temp_mb": temp_mb(compiled["banded"]), "dense_temp_mb": temp_mb(compiled["dense"]), "load": before,
    }  # fmt: skip
