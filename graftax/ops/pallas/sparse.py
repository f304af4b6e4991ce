"""Softmax attention of blocks of queries to chosen blocks of keys as TPU kernels, forward and back.

The keys and values of a head lie in the chip's memory whole, so a block that many queries chose is read from outside once;
a grid step takes some blocks of queries, and for each walks over its chosen blocks with a running softmax (FlashAttention,
arXiv 2205.14135, Algorithm 1). Numbers of blocks lie in scalar memory, where addresses are computed. On the way back
gradients of keys and values are summed in the chip's memory at the same places, so nobody asks who chose a block. Short
heads are laid one behind the other and become one long one, with the numbers of their blocks moved.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from graftax.ops.kernels import LANES

ROWS = 16
"""Blocks are whole multiples of this: the rows of a tile of registers in half precision."""

STEP = 32
"""Blocks of queries of a grid step, at most."""

AT_ONCE = 512
"""Keys that meet a block of queries at once, about."""

LEAST = 256
"""Keys of a head, below which the plain form stays."""

TOGETHER = 4096
"""Keys of heads laid one behind the other, at most; a longer head stays alone."""

LOWEST = -1e30
"""Stands for minus infinity, and leaves differences finite."""

SPARE = 16 * 2**20
"""Bytes of chip memory for all that does not grow with the keys: tiles of queries, and what the compiler keeps."""


class _Sizes(NamedTuple):
    """What the kernels know beforehand. `block`: tokens of a block; `keys`: tokens of a head, of the last block some;
    `interpret`: without a TPU."""

    block: int
    keys: int
    interpret: bool


def sparse_takes(shape: tuple[int, ...], block: int, dtype: DTypeLike, memory: int) -> bool:
    """Whether the kernels serve keys (b, m, h, k) in blocks of this size, on cores with `memory` bytes.

    Few keys are left to the compiler: a step would be over before it is under way. So is a sixteenth of the memory.
    """
    _, m, _, width = shape
    needed = _needed(-(-m // block) * block, width, dtype)
    return m >= LEAST and block % ROWS == 0 and 16 * needed <= 15 * memory


def _needed(keys: int, head_dim: int, dtype: DTypeLike) -> int:
    """Bytes of chip memory on the way back: keys, values and their gradients of one head and of the next, and sums in
    float32."""
    width = -(-head_dim // LANES) * LANES
    return max(keys, TOGETHER) * width * (2 * 4 * jnp.dtype(dtype).itemsize + 2 * 4) + SPARE


def block_sparse_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, chosen: jax.Array, block: int, interpret: bool = False
) -> jax.Array:
    """Softmax attention of each block of queries to the blocks of keys `chosen` (b, h, i, count) for it.

    q (b, n, h, k), k and v (b, m, h, k) -> (b, n, h, k) in v's type: `graftax.ops.sla.sparse_attention`. Products take
    their arrays as they are, sums and softmax are float32. Only where `sparse_takes` the sizes. `interpret` runs the kernels
    without a TPU, slowly.
    """
    (b, n, h, width), m = q.shape, k.shape[1]
    together = next(c for c in range(h, 0, -1) if h % c == 0 and (c == 1 or c * m <= TOGETHER))
    q, k, v = (_laid(a, block, together) for a in (q * width**-0.5, k, v))  # (groups, together x tokens, k)
    heads = jnp.arange(together)[:, None, None] * -(-m // block)
    numbers = (chosen.reshape(-1, together, *chosen.shape[2:]) + heads).reshape(q.shape[0], -1, chosen.shape[-1])
    rows = numbers.shape[1]
    spare = -rows % _step(rows)
    q, numbers = (jnp.pad(a, ((0, 0), (0, more), (0, 0))) for a, more in ((q, spare * block), (numbers, spare)))
    out: jax.Array = _attention(q, k, v, numbers, _Sizes(block, m, interpret))
    return out[:, : rows * block].reshape(b, h, -1, width)[:, :, :n].swapaxes(1, 2)


def _laid(a: jax.Array, block: int, together: int) -> jax.Array:
    """(b, n, h, k) -> (b h / together, together x whole blocks of tokens, k)."""
    b, n, h, width = a.shape
    a = jnp.pad(a.swapaxes(1, 2), ((0, 0), (0, 0), (0, -n % block), (0, 0)))
    return a.reshape(b * h // together, -1, width)


def _step(rows: int) -> int:
    """Blocks of queries of a grid step: whole eights, as scalar memory is laid out, with little padding."""
    steps = -(-rows // STEP)
    return -(-rows // (8 * steps)) * 8


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q: jax.Array, k: jax.Array, v: jax.Array, numbers: jax.Array, sizes: _Sizes) -> jax.Array:
    """q (g, n, k) of scaled queries, k and v (g, m, k), numbers (g, n / block, count) -> (g, n, k)."""
    return _forward(q, k, v, numbers, sizes)[0]


def _attention_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, numbers: jax.Array, sizes: _Sizes
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    out, logs = _forward(q, k, v, numbers, sizes)
    return out, (q, k, v, numbers, out, logs)


def _attention_backward(
    sizes: _Sizes, saved: tuple[jax.Array, ...], g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, numbers, out, logs = saved
    return *_backward(q, k, v, numbers, out, logs, g, sizes), None


_attention.defvjp(_attention_forward, _attention_backward)


# --- Calls -------------------------------------------------------------------------------------------------------------


class _Specs(NamedTuple):
    """Who gets what in a step: numbers of blocks, queries, logarithms of their sums, keys."""

    numbers: pl.BlockSpec
    queries: pl.BlockSpec
    logs: pl.BlockSpec
    keys: pl.BlockSpec

    @classmethod
    def of(cls, q: jax.Array, k: jax.Array, numbers: jax.Array, sizes: _Sizes) -> _Specs:
        step, count = _step(numbers.shape[1]), numbers.shape[2]

        def rows(shape: tuple[int, int], memory: Any = None) -> pl.BlockSpec:
            return pl.BlockSpec((1, *shape), lambda i, j: (i, j, 0), memory_space=memory)

        keys = pl.BlockSpec((1, *k.shape[1:]), lambda i, j: (i, 0, 0))
        queries = rows((step * sizes.block, q.shape[2]))
        return cls(rows((step, count), pltpu.SMEM), queries, rows((step, sizes.block)), keys)


def _call(
    kernel: Callable[..., None], products: int, inputs: Sequence[tuple[jax.Array, pl.BlockSpec]],
    outputs: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]], sums: Sequence[tuple[int, ...]], sizes: _Sizes, name: str,
) -> Any:  # fmt: skip
    """A kernel over groups and steps of queries; `inputs` are numbers, queries and keys first. `products` of every query
    with every chosen key are counted, for the compiler."""
    numbers, q, k = (a for a, _ in inputs[:3])
    pairs = numbers.size * sizes.block**2
    moved = [a for a, _ in (*inputs, *outputs)]
    return pl.pallas_call(
        functools.partial(kernel, sizes=sizes),
        grid=(q.shape[0], numbers.shape[1] // _step(numbers.shape[1])),
        in_specs=[spec for _, spec in inputs],
        out_specs=[spec for _, spec in outputs],
        out_shape=[shape for shape, _ in outputs],
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in sums],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=_needed(k.shape[1], k.shape[2], k.dtype)
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * pairs * q.shape[2], transcendentals=pairs,
            bytes_accessed=sum(math.prod(a.shape) * a.dtype.itemsize for a in moved),
        ),
        interpret=sizes.interpret,
        name=name,
    )(*(a for a, _ in inputs))  # fmt: skip


def _like(a: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(a.shape, a.dtype)


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, numbers: jax.Array, sizes: _Sizes
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """The attention, and the logarithm of every query's sum of exponentials (g, n / block, block)."""
    specs = _Specs.of(q, k, numbers, sizes)
    logs = jax.ShapeDtypeStruct((*numbers.shape[:2], sizes.block), jnp.float32)
    inputs = [(numbers, specs.numbers), (q, specs.queries), (k, specs.keys), (v, specs.keys)]
    outputs = [(jax.ShapeDtypeStruct(q.shape, v.dtype), specs.queries), (logs, specs.logs)]
    return _call(_forward_kernel, 2, inputs, outputs, [], sizes, "block_sparse_attention")


def _backward(
    q: jax.Array, k: jax.Array, v: jax.Array, numbers: jax.Array, out: jax.Array, logs: jax.Array, g: jax.Array,
    sizes: _Sizes,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Gradients of q, k and v."""
    specs = _Specs.of(q, k, numbers, sizes)
    inputs = [(numbers, specs.numbers), (q, specs.queries), (k, specs.keys), (v, specs.keys)]
    inputs += [(out, specs.queries), (logs, specs.logs), (g, specs.queries)]
    outputs = [(_like(q), specs.queries), (_like(k), specs.keys), (_like(v), specs.keys)]
    sums = [k.shape[1:], v.shape[1:]]
    return _call(_backward_kernel, 5, inputs, outputs, sums, sizes, "block_sparse_attention_backward")


# --- Kernels -----------------------------------------------------------------------------------------------------------


def _forward_kernel(numbers: Any, q: Any, k: Any, v: Any, out: Any, logs: Any, *, sizes: _Sizes) -> None:
    def row(i: Any, _: None) -> None:
        rows = _rows(i, sizes.block)
        queries = q[0, rows]

        def meet(blocks: list[Any], so_far: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            top, total, mixed = so_far
            logits = _masked(_product(queries, _gathered(k, blocks, sizes), 1, 1), blocks, sizes)  # (block, keys)
            higher = jnp.maximum(top, logits.max(-1, keepdims=True))
            weights, shrink = jnp.exp(logits - higher), jnp.exp(top - higher)
            mixed = mixed * shrink + _product(weights.astype(v.dtype), _gathered(v, blocks, sizes), 1, 0)
            return higher, total * shrink + weights.sum(-1, keepdims=True), mixed

        start = [jnp.full((sizes.block, 1), value, jnp.float32) for value in (LOWEST, 0)]
        top, total, mixed = _walk(numbers, i, meet, (*start, jnp.zeros(queries.shape, jnp.float32)), sizes)
        out[0, rows] = (mixed / total).astype(out.dtype)
        logs[0, pl.ds(i, 1)] = jnp.broadcast_to(top + jnp.log(total), (sizes.block, LANES)).T[:1]

    jax.lax.fori_loop(0, numbers.shape[1], row, None)


def _backward_kernel(
    numbers: Any, q: Any, k: Any, v: Any, out: Any, logs: Any, g: Any, dq: Any, dk: Any, dv: Any, k_sum: Any, v_sum: Any, *,
    sizes: _Sizes,
) -> None:  # fmt: skip
    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        for total in (k_sum, v_sum):
            total[...] = jnp.zeros_like(total)

    def row(i: Any, _: None) -> None:
        rows = _rows(i, sizes.block)
        queries, grad = q[0, rows], g[0, rows]
        log = jnp.broadcast_to(logs[0, pl.ds(i, 1)], (LANES, sizes.block)).T[:, :1]  # (block, 1)
        along = (grad.astype(jnp.float32) * out[0, rows].astype(jnp.float32)).sum(-1, keepdims=True)

        def meet(blocks: list[Any], so_far: jax.Array) -> jax.Array:
            keys, values = (_gathered(a, blocks, sizes) for a in (k, v))
            weights = jnp.exp(_masked(_product(queries, keys, 1, 1), blocks, sizes) - log)  # (block, keys)
            d_logits = (weights * (_product(grad, values, 1, 1) - along)).astype(keys.dtype)
            _scatter(v_sum, _product(weights.astype(grad.dtype), grad, 0, 0), blocks, sizes)
            _scatter(k_sum, _product(d_logits, queries, 0, 0), blocks, sizes)
            return so_far + _product(d_logits, keys, 1, 0)

        dq[0, rows] = _walk(numbers, i, meet, jnp.zeros(queries.shape, jnp.float32), sizes).astype(dq.dtype)

    jax.lax.fori_loop(0, numbers.shape[1], row, None)

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _() -> None:
        dk[0], dv[0] = k_sum[...].astype(dk.dtype), v_sum[...].astype(dv.dtype)


def _walk(numbers: Any, i: Any, meet: Callable[[list[Any], Any], Any], start: Any, sizes: _Sizes) -> Any:
    """`meet(blocks, so far)` over the blocks chosen by the step's i-th block of queries, some at once."""
    count = numbers.shape[2]
    size = min(count, max(1, AT_ONCE // sizes.block))

    def some(first: Any, length: int, so_far: Any) -> Any:
        return meet([numbers[0, i, first + one] for one in range(length)], so_far)

    so_far = jax.lax.fori_loop(0, count // size, lambda one, so_far: some(one * size, size, so_far), start)
    return some(count - count % size, count % size, so_far) if count % size else so_far


def _rows(number: Any, block: int) -> Any:
    return pl.ds(pl.multiple_of(number * block, block), block)


def _gathered(a: Any, blocks: list[Any], sizes: _Sizes) -> jax.Array:
    """Blocks of keys (1, m, k) one below the other: (keys, k)."""
    return jnp.concatenate([a[0, _rows(number, sizes.block)] for number in blocks])


def _scatter(total: Any, parts: jax.Array, blocks: list[Any], sizes: _Sizes) -> None:
    """Add (keys, k) to where their blocks come from."""
    for one, number in enumerate(blocks):
        total[_rows(number, sizes.block)] += parts[one * sizes.block : (one + 1) * sizes.block]


def _masked(logits: jax.Array, blocks: list[Any], sizes: _Sizes) -> jax.Array:
    """Logits (block, keys) without keys that lie behind the last token of a head."""
    last = -(-sizes.keys // sizes.block) - 1
    if sizes.keys % sizes.block == 0:
        return logits
    key = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    end = jnp.zeros(logits.shape, jnp.int32)  # where the tokens of a key's block end among these keys
    for one, number in enumerate(blocks):
        tokens = jnp.where(number % (last + 1) == last, sizes.keys % sizes.block, sizes.block)
        end = jnp.where(key >= one * sizes.block, one * sizes.block + tokens, end)
    return jnp.where(key < end, logits, LOWEST)


def _product(a: jax.Array, b: jax.Array, over_a: int, over_b: int) -> jax.Array:
    """The product of two matrices over these of their axes, in float32."""
    return jax.lax.dot_general(a, b, (((over_a,), (over_b,)), ((), ())), preferred_element_type=jnp.float32)
