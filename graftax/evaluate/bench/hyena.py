"""Hyena-X against full attention, as whole operators, over sequence lengths."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax.evaluate.bench.rows import Row, Rows
from graftax.evaluate.bench.timing import interleaved, load, temp_mb
from graftax.ops import Operator
from graftax.ops.attention import MHA, attention_form
from graftax.ops.hyena import HyenaX
from graftax.spec import Sizes


def bench_hyena(
    tokens: tuple[int, ...] = (256, 1024, 4096, 16384), width: int = 1152, heads: int = 16, rounds: int = 3,
) -> Rows:  # fmt: skip
    """Hyena-X (4 taps) and full attention on one image in float32, projections included on both sides.

    Attention is in the form that models take at this size (`graftax.ops.attention.attention_form`). "Training" is the
    gradient of weights and input, forward pass included.

    Columns: tokens, attention (its form), hyena_ms and attention_ms (medians), speedup (median over rounds),
    the same three for training (train_...), spread of Hyena's training, train_hyena_temp_mb, train_attention_temp_mb, load.
    """
    return [_row(n, width, heads, rounds) for n in tokens]


def _row(n: int, width: int, heads: int, rounds: int) -> Row:
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.standard_normal((1, n, width), np.float32)) for _ in range(2))
    sizes = Sizes(width, heads, width // heads, (1, n))  # neither looks at the grid, only at the number of tokens
    sides: dict[str, Operator] = {"hyena": HyenaX(sizes), "attention": MHA(sizes)}
    runs: dict[str, Callable[[], Any]] = {}
    memory: dict[str, float | None] = {}
    for name, operator in sides.items():
        variables = operator.init(jax.random.key(0), x[:, :1])
        forward = jax.jit(operator.apply).lower(variables, x).compile()
        train = jax.jit(functools.partial(_gradient, operator)).lower(variables, x, g).compile()
        runs[name] = functools.partial(forward, variables, x)
        runs[f"train_{name}"] = functools.partial(train, variables, x, g)
        memory[name] = temp_mb(train)
    before, times = load(), interleaved(runs, rounds)
    heads_of = jax.ShapeDtypeStruct((1, n, heads, width // heads), x.dtype)
    row: Row = {"tokens": n, "attention": attention_form(heads_of, heads_of)}
    for prefix in ("", "train_"):
        hyena, attention = times[f"{prefix}hyena"], times[f"{prefix}attention"]
        row |= {f"{prefix}hyena_ms": 1e3 * hyena.median, f"{prefix}attention_ms": 1e3 * attention.median}
        row[f"{prefix}speedup"] = attention.over(hyena)
    row |= {f"train_{name}_temp_mb": value for name, value in memory.items()}
    return {**row, "spread": times["train_hyena"].spread, "load": before}


def _gradient(operator: Operator, variables: Any, x: jax.Array, g: jax.Array) -> Any:
    """sum(g * operator(x)) and its gradient in weights and input."""

    def loss(variables: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(g * operator.apply(variables, x))  # pyright: ignore[reportArgumentType]

    return jax.value_and_grad(loss, argnums=(0, 1))(variables, x)
