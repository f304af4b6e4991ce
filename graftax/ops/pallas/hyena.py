"""Hyena-X up to its last projection as one TPU kernel: the (b, n, 3 d) features between projection, filter and gates stay
on the chip.

A grid step takes a tile of tokens of one image. The weights stay in the chip's memory over all steps, and so do, on the way
back, their gradients; the filter's view across the border of two tiles is a few rows carried from one step to the next.
Training keeps the projected tokens u (b, n, 3 d): writing them hides behind the product that makes them, where computing
them again would cost that product (`graftax/ops/README.md`, "Kernels"). The way back is one kernel as well.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from graftax.ops.kernels import LANES

HALO = 16
"""Rows of a neighbouring tile at hand: a whole tile of registers in half precision, and a token more than the longest filter
looks back."""

TILE = 256
"""Tokens of a grid step."""

COLUMNS = (384, 256, 128)
"""Channels that are filtered and gated at once: the first of these that divides d."""

Arrays = tuple[jax.Array, ...]


def hyena_takes(shape: tuple[int, ...], taps: int, memory: int) -> bool:
    """Whether the kernel serves tokens x of this shape (b, n, d), a filter of `taps` taps and cores with `memory` bytes.

    Images of less than half a tile are left to the compiler, since most of a step would be padding, and so is a sixteenth of
    the memory.
    """
    _, n, d = shape
    return d % LANES == 0 and taps <= HALO and n >= TILE // 2 and 16 * _needed(d) <= 15 * memory


def _needed(d: int) -> int:
    """Bytes of chip memory of the larger kernel, the one on the way back, in float32: weights as they come and in the type
    of the tokens, their gradient; tiles twice where they are read or written meanwhile, and room for what the compiler
    keeps."""
    return 3 * 4 * 3 * d * d + TILE * 4 * d * (2 * (3 + 3) + 3 * 5)


def gated_conv(
    x: jax.Array, weights: jax.Array, bias: jax.Array, taps: jax.Array, taps_bias: jax.Array, interpret: bool = False
) -> jax.Array:
    """q * (k * v) with (q, k, v) = split(causal depthwise conv(x W + b)): tokens x (b, n, d) -> (b, n, d) in x's type.

    `weights` (d, 3 d), `bias` (3 d,), `taps` (K, 3 d) with the last on the current token, `taps_bias` (3 d,), in any float
    type: products take x's, sums, filter and gates are float32, and x W + b is rounded to x's type as a layer does. The
    operator of arXiv 2506.05340, Section 3, without its last projection. Only where `hyena_takes` the sizes. `interpret`
    runs the kernel without a TPU, slowly.
    """
    return _gated_conv(x, weights, bias, taps, taps_bias, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _gated_conv(
    x: jax.Array, weights: jax.Array, bias: jax.Array, taps: jax.Array, taps_bias: jax.Array, interpret: bool
) -> jax.Array:
    return _forward(x, weights, bias, taps, taps_bias, keep=False, interpret=interpret)[0]


def _gated_conv_forward(
    x: jax.Array, weights: jax.Array, bias: jax.Array, taps: jax.Array, taps_bias: jax.Array, interpret: bool
) -> tuple[jax.Array, Arrays]:
    out, u = _forward(x, weights, bias, taps, taps_bias, keep=True, interpret=interpret)
    return out, (x, u, weights, bias, taps, taps_bias)


def _gated_conv_backward(interpret: bool, saved: Arrays, g: jax.Array) -> Arrays:
    x, u, weights, bias, taps, taps_bias = saved
    dx, *others = _backward(x, u, g, weights, taps, taps_bias, interpret=interpret)
    return dx, *(d.reshape(a.shape).astype(a.dtype) for d, a in zip(others, (weights, bias, taps, taps_bias), strict=True))


_gated_conv.defvjp(_gated_conv_forward, _gated_conv_backward)


def _tile(n: int) -> int:
    """Tokens of a grid step for images of n tokens."""
    return min(TILE, -(-n // HALO) * HALO)


def _columns(d: int) -> int:
    return next(columns for columns in COLUMNS if d % columns == 0)


def _whole(*shape: int) -> pl.BlockSpec:
    """An array that stays on the chip over all steps."""
    return pl.BlockSpec(shape, lambda i, j: (0,) * len(shape), pipeline_mode=pl.Buffered(1))


def _params(d: int) -> Any:
    """Steps run in order: rows and sums are carried from one to the next."""
    return pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=_needed(d))


def _cost(products: int, weights: jax.Array, *moved: jax.Array | jax.ShapeDtypeStruct) -> pl.CostEstimate:
    """What the compiler is told: `products` of all tokens with the weights, and arrays that are moved once. The tokens
    (b, n, d) are the first of these."""
    b, n, _ = moved[0].shape
    return pl.CostEstimate(
        flops=2 * products * b * n * weights.size,
        bytes_accessed=sum(a.size * a.dtype.itemsize for a in (weights, *moved)),
        transcendentals=0,
    )


def _first() -> jax.Array:
    """Whether this is the first step of all."""
    return (pl.program_id(0) == 0) & (pl.program_id(1) == 0)


# --- Forward -----------------------------------------------------------------------------------------------------------


def _forward(
    x: jax.Array, weights: jax.Array, bias: jax.Array, taps: jax.Array, taps_bias: jax.Array, *, keep: bool,
    interpret: bool,
) -> Arrays:  # fmt: skip
    """(out (b, n, d),), and with `keep` u (b, n, 3 d) = x W + b."""
    (b, n, d), tile = x.shape, _tile(x.shape[1])
    tokens, projected = (pl.BlockSpec((1, tile, size), lambda i, j: (i, j, 0)) for size in (d, 3 * d))
    shapes = [jax.ShapeDtypeStruct((b, n, size), x.dtype) for size in (d, 3 * d)]
    return pl.pallas_call(
        functools.partial(_forward_kernel, keep=keep),
        grid=(b, pl.cdiv(n, tile)),
        in_specs=[tokens, _whole(d, 3 * d), _whole(1, 3 * d), _whole(*taps.shape), _whole(1, 3 * d)],
        out_specs=[tokens, projected][: 1 + keep],
        out_shape=shapes[: 1 + keep],
        scratch_shapes=[pltpu.VMEM((d, 3 * d), x.dtype), pltpu.VMEM((HALO + tile, 3 * d), jnp.float32)],
        compiler_params=_params(d),
        cost_estimate=_cost(1, weights, x, *shapes[: 1 + keep]),
        interpret=interpret,
        name="hyena_x",
    )(x, weights, bias[None], taps, taps_bias[None])


def _forward_kernel(x: Any, weights: Any, bias: Any, taps: Any, taps_bias: Any, out: Any, *more: Any, keep: bool) -> None:
    cast, rows = more[-2:]  # weights in the tokens' type; u of this tile below the last rows of the one before
    (_, tile, d), columns = x.shape, _columns(x.shape[-1])

    @pl.when(_first())
    def _() -> None:
        cast[...] = weights[...].astype(cast.dtype)

    last = rows[tile:]
    rows[:HALO] = jnp.where(pl.program_id(1) == 0, 0.0, last)

    def chunk(number: Any, _: None) -> None:
        tokens, parts = x[0], []
        here, *thirds = _places(number, columns, d)
        for at in thirds:
            u = jnp.dot(tokens, cast[:, at], preferred_element_type=jnp.float32) + bias[:, at].astype(jnp.float32)
            u = u.astype(x.dtype)
            if keep:
                more[0][0, :, at] = u
            rows[HALO:, at] = u.astype(jnp.float32)
            parts.append(_filtered(rows, at, taps, taps_bias))
        q, k, v = parts
        out[0, :, here] = (q * (k * v)).astype(out.dtype)

    jax.lax.fori_loop(0, d // columns, chunk, None)


def _places(number: Any, columns: int, d: int) -> list[Any]:
    """Where a chunk of channels lies among d, and that of q, of k and of v among 3 d."""
    return [pl.ds(pl.multiple_of(part * d + number * columns, LANES), columns) for part in (0, 0, 1, 2)]


def _filtered(rows: Any, at: Any, taps: Any, taps_bias: Any) -> jax.Array:
    """The causal filter on rows (HALO + tile, c) in the channels `at`: (tile, columns)."""
    count, tile = taps.shape[0], rows.shape[0] - HALO
    out = taps_bias[:, at].astype(jnp.float32)
    for tap in range(count):
        first = HALO - (count - 1) + tap
        out = out + rows[first : first + tile, at] * taps[tap : tap + 1, at].astype(jnp.float32)
    return out


# --- Backward ----------------------------------------------------------------------------------------------------------


def _backward(
    x: jax.Array, u: jax.Array, g: jax.Array, weights: jax.Array, taps: jax.Array, taps_bias: jax.Array, *, interpret: bool
) -> Arrays:
    """Gradients of x, the weights, their bias, the filter and its bias, the last four in float32, from g of the output.

    Tiles come from the last to the first, since a token's u has a part in the tokens after it.
    """
    (b, n, d), tile, count = x.shape, _tile(x.shape[1]), taps.shape[0]
    tiles = pl.cdiv(n, tile)
    tokens, projected = (pl.BlockSpec((1, tile, size), lambda i, j: (i, tiles - 1 - j, 0)) for size in (d, 3 * d))
    before = pl.BlockSpec((1, HALO, 3 * d), lambda i, j: (i, jnp.maximum((tiles - 1 - j) * (tile // HALO) - 1, 0), 0))
    sums = [(d, 3 * d), (1, 3 * d), (count, 3 * d), (1, 3 * d)]
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype), *(jax.ShapeDtypeStruct(s, jnp.float32) for s in sums)]
    return pl.pallas_call(
        functools.partial(_backward_kernel, n=n),
        grid=(b, tiles),
        in_specs=[tokens, projected, before, tokens, _whole(d, 3 * d), _whole(count, 3 * d), _whole(1, 3 * d)],
        out_specs=[tokens, *(_whole(*shape) for shape in sums)],
        out_shape=shapes,
        scratch_shapes=[
            pltpu.VMEM((d, 3 * d), x.dtype),  # the weights in the tokens' type
            pltpu.VMEM((HALO + tile, 3 * d), jnp.float32),  # u of the tile below the last rows of the one before
            pltpu.VMEM((tile + HALO, 3 * d), jnp.float32),  # gradients of the features above those of the next tile
            pltpu.VMEM((tile, d), jnp.float32),  # gradients of the tokens
        ],
        compiler_params=_params(d),
        cost_estimate=_cost(2, weights, x, u, g, *shapes),
        interpret=interpret,
        name="hyena_x_backward",
    )(x, u, u, g, weights, taps, taps_bias[None])


def _backward_kernel(
    x: Any, u: Any, before: Any, g: Any, weights: Any, taps: Any, taps_bias: Any, dx: Any, d_weights: Any, d_bias: Any,
    d_taps: Any, d_taps_bias: Any, cast: Any, rows: Any, d_rows: Any, dx_sum: Any, *, n: int,
) -> None:  # fmt: skip
    (_, tile, d), columns = x.shape, _columns(x.shape[-1])
    at_tile = pl.num_programs(1) - 1 - pl.program_id(1)

    @pl.when(_first())
    def _() -> None:
        cast[...] = weights[...].astype(cast.dtype)
        for total in (d_weights, d_bias, d_taps, d_taps_bias):
            total[...] = jnp.zeros_like(total)

    def there(a: jax.Array) -> jax.Array:
        """Zeros where a last tile goes beyond the image."""
        if n % tile == 0:
            return a
        row = at_tile * tile + jax.lax.broadcasted_iota(jnp.int32, (tile, 1), 0)
        return jnp.where(row < n, a, jnp.zeros_like(a))

    rows[:HALO] = jnp.where(at_tile == 0, 0.0, before[0].astype(jnp.float32))
    rows[HALO:] = there(u[0].astype(jnp.float32))
    following = d_rows[:HALO]
    d_rows[tile:] = jnp.where(pl.program_id(1) == 0, 0.0, following)
    dx_sum[...] = jnp.zeros_like(dx_sum)
    tokens = there(x[0])

    def chunk(number: Any, _: None) -> None:
        here, *thirds = _places(number, columns, d)
        q, k, v = (_filtered(rows, at, taps, taps_bias) for at in thirds)
        grad = there(g[0, :, here].astype(jnp.float32))
        for at, d_feature in zip(thirds, (grad * (k * v), (grad * q) * v, (grad * q) * k), strict=True):
            d_rows[:tile, at] = d_feature
            d_taps_bias[:, at] += d_feature.sum(0, keepdims=True)
            d_u = _filter_back(rows, d_rows, at, taps, d_taps)
            d_bias[:, at] += d_u.sum(0, keepdims=True)
            d_u = d_u.astype(x.dtype)
            dx_sum[...] += _product(d_u, cast[:, at], 1, 1)  # (tile, columns) (d, columns)^T
            d_weights[:, at] += _product(tokens, d_u, 0, 0)  # (tile, d)^T (tile, columns)

    jax.lax.fori_loop(0, d // columns, chunk, None)
    dx[0] = dx_sum[...].astype(dx.dtype)


def _filter_back(rows: Any, d_rows: Any, at: Any, taps: Any, d_taps: Any) -> jax.Array:
    """Gradients of u (tile, columns) in the channels `at`, the filter run backwards in time; those of the filter are
    added to."""
    count, tile = taps.shape[0], d_rows.shape[0] - HALO
    d_feature, total = d_rows[:tile, at], jnp.zeros((tile, at.size), jnp.float32)
    for tap in range(count):
        ahead = count - 1 - tap
        total = total + d_rows[ahead : ahead + tile, at] * taps[tap : tap + 1, at].astype(jnp.float32)
        seen = rows[HALO - ahead : HALO - ahead + tile, at]
        d_taps[tap : tap + 1, at] += (d_feature * seen).sum(0, keepdims=True)
    return total


def _product(a: jax.Array, b: jax.Array, over_a: int, over_b: int) -> jax.Array:
    """The product of two matrices over these of their axes, in float32."""
    return jax.lax.dot_general(a, b, (((over_a,), (over_b,)), ((), ())), preferred_element_type=jnp.float32)
