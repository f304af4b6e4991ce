"""Full attention and what is grafted in its place, as whole operators and inside a block, over sequence lengths."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from graftax import ops
from graftax.backbones.dit import variants as dit
from graftax.backbones.pixart import variants as pixart
from graftax.backbones.pixart.variants import TEXT_TOKENS
from graftax.blocks import Context, bind, block_kind
from graftax.errors import BadInput, did_you_mean
from graftax.evaluate.bench.rows import Row, Rows
from graftax.evaluate.bench.timing import interleaved, load, temp_mb
from graftax.ops.attention import MHA, attend
from graftax.ops.base import Operator
from graftax.ops.blockwise import blockwise_attention
from graftax.spec import Sizes, op

BLOCKWISE = "mha blockwise"

AROUND = {"dit": dit.around, "pixart": pixart.around}
"""What stands around the mixers, by the kind of the block."""


class DenseMHA(MHA):
    """`MHA` through the n x n matrix at every size."""

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k, v)


class BlockwiseMHA(MHA):
    """`MHA` by tiles at every size."""

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return blockwise_attention(q, k, v)


def bench_attention(
    tokens: tuple[int, ...] = (256, 1024, 4096, 16384), mixers: tuple[str, ...] = ("hyena_x", "hyena_2d", "swa", "swa_2d"),
    width: int = 1152, heads: int = 16, dense_up_to: int = 4096, rounds: int = 3, block: str = "dit",
) -> Rows:  # fmt: skip
    """Attention in both forms, and `mixers` with their default options, on one image in float32 (the defaults: DiT-XL's).

    "Forward" is the operator with its projections; "train" the gradient of a whole block that holds it, in weights and
    input, forward pass included: of a DiT's, or with `block="pixart"` of a PixArt's, which looks at 300 tokens of text.
    Above `dense_up_to` tokens the dense form is compiled and not run.

    Columns: tokens, mixer, gflop (forward), forward_ms, forward_speedup (over attention by tiles, median over
    rounds), forward_temp_mb, train_ms, train_speedup, train_temp_mb, spread of the forward pass, load. Raises `BadInput` on
    unknown mixers and blocks, and where tokens make no square image.
    """
    if block not in AROUND:
        raise BadInput(f"bench attention: block {block!r}, expected one of {tuple(AROUND)}{did_you_mean(block, AROUND)}")
    return [row for n in tokens for row in _rows(_sizes(n, width, heads, block), mixers, n <= dense_up_to, rounds, block)]


def _sizes(tokens: int, width: int, heads: int, block: str) -> Sizes:
    side = math.isqrt(tokens)
    if side**2 != tokens or width % heads:
        raise BadInput(f"bench attention: {tokens} tokens, width {width}, {heads} heads, expected a square, and whole heads")
    return Sizes(width, heads, width // heads, (side, side), context=TEXT_TOKENS["sigma"] if block == "pixart" else 0)


def _rows(sizes: Sizes, mixers: Sequence[str], with_dense: bool, rounds: int, kind: str) -> Rows:
    operators: dict[str, Operator] = {"mha dense": DenseMHA(sizes), BLOCKWISE: BlockwiseMHA(sizes)}
    for name in mixers:
        operators[name] = ops.build(ops.resolve(op(name), "mixer", sizes), sizes)
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.standard_normal((1, sizes.tokens, sizes.width), np.float32)) for _ in range(2))
    runs: dict[str, Callable[[], Any]] = {}
    rows: dict[str, Row] = {}
    for name, operator in operators.items():
        block, weights = whole_block(kind, operator, sizes)
        train = jax.jit(functools.partial(_gradient, block)).lower(weights, x, g).compile()
        forward = jax.jit(operator.apply).lower({"params": weights["mixer"]}, x).compile()
        memory = {"forward_temp_mb": temp_mb(forward), "train_temp_mb": temp_mb(train)}
        rows[name] = {"tokens": sizes.tokens, "mixer": name, "gflop": operator.cost().flops / 1e9, **memory}
        if with_dense or not isinstance(operator, DenseMHA):
            runs[name] = functools.partial(forward, {"params": weights["mixer"]}, x)
            runs[f"train {name}"] = functools.partial(train, weights, x, g)
    before, times = load(), interleaved(runs, rounds)
    for name, row in rows.items():
        for prefix, key in (("", "forward"), ("train ", "train")):
            time, tiled = times.get(f"{prefix}{name}"), times[f"{prefix}{BLOCKWISE}"]
            row[f"{key}_ms"] = 1e3 * time.median if time else None
            row[f"{key}_speedup"] = tiled.over(time) if time else None
        row |= {"spread": times[name].spread if name in times else None, "load": before}
    return [{key: row[key] for key in _COLUMNS} for row in rows.values()]


_COLUMNS = (
    "tokens", "mixer", "gflop", "forward_ms", "forward_speedup", "forward_temp_mb", "train_ms", "train_speedup",
    "train_temp_mb", "spread", "load",
)  # fmt: skip


def whole_block(
    name: str, mixer: Operator, sizes: Sizes, dtype: DTypeLike | None = None
) -> tuple[Callable[[Any, jax.Array], jax.Array], dict[str, Any]]:
    """A block of the kind `name` around a mixer as a function of its weights and x (1, n, d), and such weights, by slot;
    `dtype` is that of what stands around the mixer."""
    kind, rest, key = block_kind(name), {**AROUND[name](), "mlp": op("mlp")}, jax.random.key(0)
    around = [slot for slot in kind.slots if slot.name in rest]
    held = {slot.name: slot.build(slot.resolve(rest[slot.name], sizes), sizes, dtype) for slot in around}
    held["mixer"] = mixer
    normal = functools.partial(jax.random.normal, key)
    shared = {read: normal(a.shape) for read, a in held["adaln"].example()[1].get("shared", {}).items()}
    context = Context(normal((1, sizes.width)), shared)
    if sizes.context:
        mask = jnp.arange(sizes.context)[None] < sizes.context // 2
        context = dataclasses.replace(context, text=normal((1, sizes.context, sizes.width)), text_mask=mask)

    def initial(operator: Operator) -> Any:
        inputs, reads = operator.example()
        return jax.jit(operator.init)(key, *inputs, **reads).get("params", {})

    def run(weights: Any, x: jax.Array) -> jax.Array:
        bound = {slot: bind(operator, weights[slot], context) for slot, operator in held.items()}
        return kind(bound, {"img": x}, context, ())[0]["img"]

    return run, {slot: initial(operator) for slot, operator in held.items()}


def _gradient(block: Callable[[Any, jax.Array], jax.Array], weights: Any, x: jax.Array, g: jax.Array) -> Any:
    """sum(g * block(x)) and its gradient in weights and input."""
    return jax.value_and_grad(lambda weights, x: jnp.sum(g * block(weights, x)), argnums=(0, 1))(weights, x)
