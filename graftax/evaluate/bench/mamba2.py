"""Mamba-2's state-space scan: chunked against sequential, forward and with its gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from graftax.evaluate.bench.rows import Row, Rows
from graftax.evaluate.bench.timing import interleaved, load, temp_mb
from graftax.ops.ssd import default_chunk, ssd_chunked, ssd_sequential

Form = Callable[..., jax.Array]
Compiled = jax.stages.Compiled


def bench_mamba2(
    tokens: tuple[int, ...] = (256, 4096), chunks: tuple[int, ...] = (16, 32, 64, 256), heads: int = 144, headdim: int = 16,
    d_state: int = 64, batch: int = 1, rounds: int = 5,
) -> Rows:  # fmt: skip
    """The scan alone in float32, at the sizes of a Mamba-2 in DiT-XL; `chunks` are compared with the sequential definition.

    Columns: tokens, form ("sequential", or "chunk q", starred where it is the default), forward_ms and training_ms (medians;
    training is forward and gradients of all inputs together), forward_speedup and training_speedup over the sequential form
    (medians over rounds), forward_temp_mb, training_temp_mb, error (largest difference of outputs over the largest output),
    load. The sequential form's gradient takes 1.2 MB per token at these sizes.
    """
    return [row for n in tokens for row in _rows(n, chunks, (heads, headdim, d_state), batch, rounds)]


def scan_inputs(n: int, heads: int, headdim: int, d_state: int, batch: int = 1) -> tuple[jax.Array, ...]:
    """x (b, n, h, k), dt (b, n, h), A (h,), B, C (b, n, s): normal, with steps and rates as Mamba-2 initialises them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, n, heads, headdim), np.float32)
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), (batch, n, heads))).astype(np.float32)
    A = -rng.uniform(1, 16, heads).astype(np.float32)
    B, C = rng.standard_normal((2, batch, n, d_state), np.float32)
    return tuple(jnp.asarray(a) for a in (x, dt, A, B, C))


def _rows(n: int, chunks: tuple[int, ...], sizes: tuple[int, int, int], batch: int, rounds: int) -> Rows:
    forms: dict[str, Form] = {"sequential": ssd_sequential}
    for chunk in chunks:
        star = "*" if chunk == default_chunk() else ""
        forms[f"chunk {chunk}{star}"] = functools.partial(ssd_chunked, chunk=chunk)
    inputs = scan_inputs(n, *sizes, batch)
    forward = {name: jax.jit(form).lower(*inputs).compile() for name, form in forms.items()}
    training = {name: jax.jit(_with_gradient(form)).lower(*inputs).compile() for name, form in forms.items()}
    expected = forward["sequential"](*inputs)
    candidates = {f"forward {name}": functools.partial(run, *inputs) for name, run in forward.items()}
    candidates |= {f"training {name}": functools.partial(run, *inputs) for name, run in training.items()}
    before, times = load(), interleaved(candidates, rounds)

    def row(name: str) -> Row:
        both = {kind: (times[f"{kind} {name}"], times[f"{kind} sequential"]) for kind in ("forward", "training")}
        return {
            "tokens": n, "form": name, **{f"{kind}_ms": 1e3 * own.median for kind, (own, _) in both.items()},
            **{f"{kind}_speedup": other.over(own) for kind, (own, other) in both.items()},
            "forward_temp_mb": temp_mb(forward[name]), "training_temp_mb": temp_mb(training[name]),
            "error": float(jnp.abs(forward[name](*inputs) - expected).max() / jnp.abs(expected).max()), "load": before,
        }  # fmt: skip

    return [row(name) for name in forms]


def _with_gradient(form: Form) -> Callable[..., tuple[jax.Array, tuple[jax.Array, ...]]]:
    """The output, and the gradients of all inputs for a gradient of the output equal to x."""

    def run(*inputs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        y, pull = jax.vjp(form, *inputs)
        return y, pull(inputs[0])

    return run
