"""What each operator of a model costs, counted: FLOPs, bytes, and the time a named chip would need at its limits.

The roofline model (Williams, Waterman, Patterson, "Roofline", CACM 2009): a piece of work of F FLOPs that moves B bytes
takes at least max(F / peak, B / bandwidth). Its arithmetic intensity F / B against the chip's own peak / bandwidth tells
which of the two binds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax.blocks import block_kind, build
from graftax.models import forward, param_shapes
from graftax.models.backbone import find
from graftax.models.collect import places
from graftax.models.cost import flops
from graftax.models.prediction import time_at
from graftax.models.stack import runs
from graftax.ops.base import Operator, shapes_of
from graftax.spec import ModelSpec
from graftax.train.chips import Chip

WHOLE = "whole model"


@dataclass(frozen=True)
class Work:
    """One kind of operator on a batch, or the whole model. FLOPs and bytes are those of all its runs in one forward pass.

    Attributes:
        name: slot and operator.
        count: blocks that hold it.
        params: its weights.
        flops: by the closed forms of `graftax.models.cost`.
        least_bytes: weights, input and output, each moved once, as if everything between stayed on the chip.
        saved_bytes: what automatic differentiation keeps of one forward pass for the backward one, beside weights, before
            the compiler shares or recomputes any of it.
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
    rows = [operator_work(at, batch, dtype) for at in distinct_operators(spec)]
    h, w, _ = spec.image_shape
    weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(spec)))
    moved = jnp.dtype(dtype).itemsize * (weights + h * w * batch * (spec.option("channels") + spec.out_channels))
    whole = Work(WHOLE, 1, weights, batch * flops(spec), moved, _model_saved(spec, batch, dtype))
    return [*rows, whole]


@dataclass(frozen=True)
class OperatorAt:
    """One of the distinct operators of a model that mix tokens or channels.

    Attributes:
        spec: of the model.
        block: the first that holds it.
        slot: there.
        holders: all blocks that hold it in this slot.
    """

    spec: ModelSpec
    block: int
    slot: str
    holders: tuple[int, ...]

    @property
    def name(self) -> str:
        """Slot and operator, "mixer hyena_x(kernel=4)"."""
        return f"{self.slot} {self.spec.blocks[self.block][self.slot]}"

    def operator(self, dtype: DTypeLike | None) -> Operator:
        """Its module."""
        block = self.spec.blocks[self.block]
        return build(self.spec, block.kind, self.slot, block[self.slot], dtype)

    def run(self, dtype: DTypeLike | None) -> Callable[[Any, Any], Any]:
        """As a function of its weights and of `inputs`."""
        module = self.operator(dtype)
        return lambda params, inputs: module.apply({"params": params}, *inputs[0], **inputs[1])

    def inputs(self, batch: int, make: Callable[..., Any]) -> Any:
        """What it is called with for `batch` images, arrays by `make(shape, dtype)`: positional, and by name."""
        return jax.tree.map(lambda leaf: make((batch, *leaf.shape[1:]), leaf.dtype), self.operator(None).example())


def distinct_operators(spec: ModelSpec) -> list[OperatorAt]:
    """The operators that mix tokens or channels, equal ones once, slot by slot."""
    found = [(slot, op, ids) for (kind, slot, op), ids in places(spec).items() if slot in block_kind(kind).tapped]
    order = list(dict.fromkeys(slot for slot, _, _ in found))
    found.sort(key=lambda one: order.index(one[0]))
    return [OperatorAt(spec, ids[0], slot, tuple(ids)) for slot, _, ids in found]


def predicted_speedup(
    before: ModelSpec, after: ModelSpec, chip: Chip, batch: int = 1, dtype: DTypeLike = jnp.bfloat16
) -> float:
    """How many times sooner a forward pass of `after` may end than one of `before`, by the least times of the operators that
    mix tokens or channels, run one after the other on `chip`. A prediction, nothing is run."""

    def seconds(spec: ModelSpec) -> float:
        return least_seconds([operator_work(at, batch, dtype) for at in distinct_operators(spec)], chip)

    return seconds(before) / seconds(after)


def least_seconds(rows: Sequence[Work], chip: Chip) -> float:
    """The least time of one pass on `chip`, by the operators among `rows`, which are `roofline`'s, one after the other."""
    return sum(row.seconds(chip) for row in rows if row.name != WHOLE)


def inputs_of(spec: ModelSpec, batch: int) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """Noise, times in the middle and conditions for `batch` images: what a model can be timed on."""
    noise = jax.random.normal(jax.random.key(1), (batch, *spec.image_shape))
    return noise, jnp.full(batch, time_at(spec.prediction, 0.5)), dict(find(spec).example(spec, batch))


def saved_bytes(fn: Callable[..., Any], *args: Any) -> int:
    """Bytes that reverse-mode differentiation of `fn` keeps, without those of its arguments; nothing is computed.

    `args` may be arrays or their shapes.
    """
    jaxpr = jax.make_jaxpr(lambda *args: jax.tree.leaves(jax.vjp(fn, *args)[1]))(*args).jaxpr
    kept = {id(v): v.aval for v in jaxpr.outvars if v not in jaxpr.invars}
    return sum(math.prod(aval.shape) * jnp.dtype(aval.dtype).itemsize for aval in kept.values())  # pyright: ignore


def operator_work(at: OperatorAt, batch: int, dtype: DTypeLike) -> Work:
    """All runs of one kind of operator in one forward pass on `batch` images, arrays of `dtype`."""
    times, cost = sum(i in at.holders for i in runs(at.spec)), at.operator(None).cost()
    shapes = shapes_of(at.operator(None))
    inputs = at.inputs(batch, lambda shape, _: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)))
    numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(inputs[0]))
    moved = jnp.dtype(dtype).itemsize * (cost.params + 2 * numbers)
    kept = saved_bytes(at.run(dtype), shapes, inputs)
    count = len(at.holders)
    return Work(at.name, count, count * cost.params, times * batch * cost.flops, times * moved, times * kept)


def _model_saved(spec: ModelSpec, batch: int, dtype: DTypeLike) -> int:
    x, t, cond = jax.eval_shape(lambda: inputs_of(spec, batch))

    def run(params: Any, x: jax.Array) -> jax.Array:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (t, cond))
        return forward(spec, params, x, *zeros, dtype=dtype)[0]

    return saved_bytes(run, param_shapes(spec), x)
