"""The causal convolution's two implementations, forward and backward, over tokens and filter lengths."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from graftax.evaluate.bench.rows import Row, Rows
from graftax.evaluate.bench.timing import interleaved, load
from graftax.ops.conv import causal_conv


def bench_conv(
    tokens: tuple[int, ...] = (256, 4096, 16384), taps: tuple[int, ...] = (4, 8, 16, 32, 64, 128), channels: int = 1152,
    rounds: int = 5,
) -> Rows:  # fmt: skip
    """`causal_conv` by shifted sums ("direct") and by FFT, on one image.

    Columns: tokens, taps, direct_ms and fft_ms (medians), speedup of direct over fft (median over rounds), the same three
    for the gradient of input and filter together (backward_...), load. `crossover` reads the rows.
    """
    return [_row(n, k, channels, rounds) for n in tokens for k in taps]


def crossover(rows: Rows) -> dict[int, int]:
    """Per number of tokens, the longest measured filter up to which direct takes less time, forward plus backward."""
    best: dict[int, int] = {}
    for n in {row["tokens"] for row in rows}:
        ordered = sorted((row for row in rows if row["tokens"] == n), key=lambda row: row["taps"])
        best[n] = 0
        for row in ordered:
            if row["direct_ms"] + row["backward_direct_ms"] >= row["fft_ms"] + row["backward_fft_ms"]:
                break
            best[n] = row["taps"]
    return best


def _row(n: int, taps: int, channels: int, rounds: int) -> Row:
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.standard_normal((1, n, channels), np.float32)) for _ in range(2))
    kernel = jnp.asarray(rng.standard_normal((taps, channels), np.float32))
    forward = {method: functools.partial(_forward(method), x, kernel) for method in ("direct", "fft")}
    backward = {f"backward_{method}": functools.partial(_backward(method), x, kernel, g) for method in ("direct", "fft")}
    before, times = load(), interleaved({**forward, **backward}, rounds)
    row: Row = {"tokens": n, "taps": taps}
    for prefix in ("", "backward_"):
        direct, fft = times[f"{prefix}direct"], times[f"{prefix}fft"]
        row |= {f"{prefix}direct_ms": 1e3 * direct.median, f"{prefix}fft_ms": 1e3 * fft.median}
        row[f"{prefix}speedup"] = fft.over(direct)
    return {**row, "load": before}


def _forward(method: str) -> Callable[..., jax.Array]:
    return jax.jit(functools.partial(causal_conv, method=method))


def _backward(method: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Gradients of input and filter alone: what the forward pass only computes for its own output is dead code here."""

    def run(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(functools.partial(causal_conv, method=method), x, kernel)[1](g)

    return jax.jit(run)
