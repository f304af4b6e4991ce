"""What each operator of a model costs, counted: FLOPs, bytes, and the time a named chip would need at its limits.

The roofline model (Williams, Waterman, Patterson, "Roofline", CACM 2009): a piece of work of F FLOPs that moves B bytes
takes at least max(F / peak, B / bandwidth). Its arithmetic intensity F / B against the chip's own peak / bandwidth tells
which of the two binds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax import ops
from graftax.models.cost import flops, runs
from graftax.models.dit import forward, param_shapes
from graftax.spec import SLOTS, ModelSpec, OpSpec
from graftax.train.chips import Chip

WHOLE = "whole model"


@dataclass(frozen=True)
class Work:
    """One kind of operator on a batch, or the whole model. FLOPs and bytes are those of all its runs in one forward pass.

    `params` its weights, `flops` by the closed forms of `graftax.models.cost`. `least_bytes`: weights, input and output,
    each moved once, as if everything between stayed on the chip. `saved_bytes`: what automatic differentiation keeps of one
    forward pass for the backward one, beside weights, before the compiler shares or recomputes any of it.
    """

    name: str
    count: int
    params: int
    flops: int
    least_bytes: int
    saved_bytes: int

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.least_bytes

    def seconds(self, chip: Chip) -> float:
        """The least time on a chip."""
        return max(self.flops / chip.flops, self.least_bytes / chip.hbm_bandwidth)

    def bound(self, chip: Chip) -> str:
        """What limits it there: "compute" or "memory"."""
        return "compute" if self.intensity >= chip.flops / chip.hbm_bandwidth else "memory"


def roofline(spec: ModelSpec, batch: int, dtype: DTypeLike = jnp.bfloat16) -> list[Work]:
    """A row for every distinct operator of `spec` on `batch` images with arrays of `dtype`, then the whole model."""
    rows = [_operator_work(spec, slot, op, batch, dtype) for slot in SLOTS for op in _distinct(spec, slot)]
    size, width = spec.input_size**2 * batch, jnp.dtype(dtype).itemsize
    weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(spec)))
    moved = width * (weights + size * (spec.in_channels + spec.out_channels))
    whole = Work(WHOLE, 1, weights, batch * flops(spec), moved, _model_saved(spec, batch, dtype))
    return [*rows, whole]


def operator_fn(spec: ModelSpec, op: OpSpec, dtype: DTypeLike | None) -> tuple[Callable[[Any, jax.Array], Any], Any]:
    """An operator as a function of (weights, x (b, n, d)), and the shapes of its weights."""
    module = ops.build(op, spec, dtype)
    one = jax.ShapeDtypeStruct((1, spec.tokens, spec.hidden_size), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: module.init(key, x)["params"], jax.random.key(0), one)
    return lambda params, x: module.apply({"params": params}, x), shapes


def saved_bytes(fn: Callable[..., Any], *args: Any) -> int:
    """Bytes that reverse-mode differentiation of `fn` keeps, without those of its arguments; nothing is computed.

    `args` may be arrays or their shapes.
    """
    jaxpr = jax.make_jaxpr(lambda *args: jax.tree.leaves(jax.vjp(fn, *args)[1]))(*args).jaxpr
    kept = {id(v): v.aval for v in jaxpr.outvars if v not in jaxpr.invars}
    return sum(math.prod(aval.shape) * jnp.dtype(aval.dtype).itemsize for aval in kept.values())  # pyright: ignore


def _distinct(spec: ModelSpec, slot: str) -> list[OpSpec]:
    return list(dict.fromkeys(getattr(block, slot) for block in spec.blocks))


def _operator_work(spec: ModelSpec, slot: str, op: OpSpec, batch: int, dtype: DTypeLike) -> Work:
    """All runs of one kind of operator in one forward pass."""
    times = sum(getattr(spec.blocks[i], slot) == op for i in runs(spec))
    count = sum(getattr(block, slot) == op for block in spec.blocks)
    cost = ops.build(op, spec).cost()
    tokens = batch * spec.tokens * spec.hidden_size
    moved = jnp.dtype(dtype).itemsize * (cost.params + 2 * tokens)
    fn, shapes = operator_fn(spec, op, dtype)
    x = jax.ShapeDtypeStruct((batch, spec.tokens, spec.hidden_size), jnp.dtype(dtype))
    kept = saved_bytes(fn, shapes, x)
    return Work(f"{slot} {op}", count, count * cost.params, times * batch * cost.flops, times * moved, times * kept)


def _model_saved(spec: ModelSpec, batch: int, dtype: DTypeLike) -> int:
    x = jax.ShapeDtypeStruct((batch, spec.input_size, spec.input_size, spec.in_channels), jnp.float32)

    def run(params: Any, x: jax.Array) -> jax.Array:
        return forward(spec, params, x, jnp.zeros(batch), jnp.zeros(batch, jnp.int32), dtype=dtype)[0]

    return saved_bytes(run, param_shapes(spec), x)
