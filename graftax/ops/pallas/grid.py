"""Attention in windows of a grid, forward and backward, without a matrix in a TPU's main memory.

A strip of rows of the grid lies on the chip with the keys around it that it sees, all channels of a token side by side as
the projections leave them. Its queries are worked on in tiles, each of which meets all its keys at once: its softmax needs
no second look, and the way back, which makes it again, needs queries, keys and values alone. Strips follow each other from
top to bottom, and gradients of keys are summed on the chip until no later strip sees them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from graftax.ops.kernels import HEADS, LANES
from graftax.ops.pallas.plan import Plan, plan
from graftax.ops.pallas.tile import backward_kernel, first_met, forward_kernel
from graftax.ops.pallas.window import Window
from graftax.ops.placement import on_parts
from graftax.ops.target import core_memory

Arrays = tuple[jax.Array, ...]


class Call(NamedTuple):
    """What one run is compiled by.

    Attributes:
        window: which keys a query sees.
        heads: of its arrays.
        interpret: whether it runs without a TPU.
    """

    window: Window
    heads: int
    interpret: bool


def window_attention(q: jax.Array, k: jax.Array, v: jax.Array, window: Window, *, interpret: bool = False) -> jax.Array:
    """softmax(q k^T / sqrt(head dim)) v over the keys in a query's window, and over those of a text, which all see.

    q (b, n, h, k), in raster order on the window's grid; k and v (b, m + n, h, k), those of the text first -> (b, n, h, k).
    `interpret` runs the kernel without a TPU, slowly. Strips must fit on the chip (`graftax.ops.pallas.plan.takes`). It has
    derivatives backwards (`jax.vjp`), not forwards.
    """
    text = k.shape[1] - q.shape[1]
    arrays = [q, k[:, text:], v[:, text:], *((k[:, :text], v[:, :text]) if text else ())]

    def run(*parts: jax.Array) -> jax.Array:
        call = Call(window, parts[0].shape[2], interpret)
        flat = tuple(a.reshape(*a.shape[:2], -1) for a in parts)  # (b, n, h k)
        return jnp.reshape(_attention(call, flat), parts[0].shape)

    return on_parts(run, [HEADS] * len(arrays))(*arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(call: Call, arrays: Arrays) -> jax.Array:
    """Of q, k, v (b, n, h k), and where there is a text its keys and values (b, m, h k)."""
    return _on_batch(functools.partial(_forward, call), arrays)[0]


def _attention_fwd(call: Call, arrays: Arrays) -> tuple[jax.Array, Arrays]:
    return _attention(call, arrays), arrays


def _attention_bwd(call: Call, arrays: Arrays, slope: jax.Array) -> tuple[Arrays]:
    return (_on_batch(functools.partial(_backward, call), (slope, *arrays)),)


_attention.defvjp(_attention_fwd, _attention_bwd)


def _on_batch(function: Callable[..., Arrays], arrays: Arrays) -> Arrays:
    """`function` of arrays (b, ...); under `vmap` of (axis b, ...), as the kernel's blocks allow no further axis."""
    run = custom_vmap(function)

    @run.def_vmap
    def _(size: int, batched: Sequence[bool], *args: jax.Array) -> tuple[Arrays, tuple[bool, ...]]:
        every = (a if mapped else jnp.broadcast_to(a, (size, *a.shape)) for a, mapped in zip(args, batched, strict=True))
        out = _on_batch(function, tuple(a.reshape(-1, *a.shape[2:]) for a in every))
        return tuple(o.reshape(size, -1, *o.shape[1:]) for o in out), (True,) * len(out)

    return run(*arrays)


def _forward(call: Call, q: jax.Array, k: jax.Array, v: jax.Array, *texts: jax.Array) -> Arrays:
    """The result for arrays (b, n, h k), alone in a tuple."""
    cut = _plan(call, q, texts, backward=False)
    grids = [_on_grid(a, call.window, cut) for a in (q, k, v)]
    queries, keys, words = _specs(cut)
    out = pl.pallas_call(
        functools.partial(forward_kernel, cut=cut, window=call.window),
        grid=(q.shape[0], call.heads // cut.heads, cut.strips),
        in_specs=[*_places(cut)[1], queries, keys, keys, *[words] * len(texts)],
        out_specs=queries,
        out_shape=jax.ShapeDtypeStruct(grids[0].shape, q.dtype),
        **_options(call, cut, q, backward=False),
    )(*_places(cut)[0], *grids, *texts)
    return (_off_grid(out, call.window, q.shape),)


def _backward(call: Call, slope: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, *texts: jax.Array) -> Arrays:
    """Gradients of q, k, v and texts for `slope`, that of the result."""
    cut = _plan(call, q, texts, backward=True)
    grids = [_on_grid(a, call.window, cut) for a in (slope, q, k, v)]
    queries, keys, words = _specs(cut)
    late = pl.BlockSpec(queries.block_shape, lambda b, g, i: (b, jnp.maximum(i - cut.lag, 0), 0, g))
    sums = pltpu.VMEM((cut.held, cut.columns, cut.lanes), jnp.float32)
    whole = jax.ShapeDtypeStruct(grids[0].shape, q.dtype)
    image, dtexts = pl.pallas_call(
        functools.partial(backward_kernel, cut=cut, window=call.window),
        grid=(q.shape[0], call.heads // cut.heads, cut.strips + cut.lag),
        in_specs=[*_places(cut)[1], queries, queries, keys, keys, (words,) * len(texts)],
        out_specs=[[queries, late, late], [words] * len(texts)],
        out_shape=[[whole] * 3, [jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in texts]],
        scratch_shapes=[sums, sums],
        **_options(call, cut, q, backward=True),
    )(*_places(cut)[0], *grids, texts)
    dtexts = [(a * factor).astype(q.dtype) for a, factor in zip(dtexts, (cut.width**-0.5, 1), strict=False)]
    return (*(_off_grid(a, call.window, q.shape) for a in image), *dtexts)


def _plan(call: Call, q: jax.Array, texts: Sequence[jax.Array], *, backward: bool) -> Plan:
    text = texts[0].shape[1] if texts else 0
    cut = plan(call.window, call.heads, q.shape[-1] // call.heads, text, q.dtype.itemsize, backward=backward)
    assert cut, "asked of `takes`"
    return cut


def _on_grid(a: jax.Array, window: Window, cut: Plan) -> jax.Array:
    """(b, n, h k) -> (b, rows, columns, h k) of the padded grid."""
    a = jnp.pad(a, ((0, 0), (0, window.grid[0] * window.grid[1] - a.shape[1]), (0, 0)))
    a = a.reshape(a.shape[0], window.grid[0], window.grid[1], -1)
    return jnp.pad(a, ((0, 0), (0, cut.rows - window.grid[0]), (0, cut.columns - window.grid[1]), (0, 0)))


def _off_grid(a: jax.Array, window: Window, shape: tuple[int, ...]) -> jax.Array:
    """(b, rows, columns, h k) of the padded grid -> `shape`, (b, n, h k)."""
    return a[:, : window.grid[0], : window.grid[1]].reshape(shape[0], -1, shape[2])[:, : shape[1]]


def _specs(cut: Plan) -> tuple[pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    """Blocks of queries, of the keys that they meet, and of the text, for image b, heads g and strip i."""
    strip = (1, cut.strip, cut.columns, cut.lanes)
    queries = pl.BlockSpec(strip, lambda b, g, i: (b, jnp.minimum(i, cut.strips - 1), 0, g))
    met = tuple(map(pl.Element, (1, cut.strip_met, cut.columns, cut.lanes)))
    step = 0 if cut.lanes % LANES else cut.lanes  # where it is none, all heads are one block
    keys = pl.BlockSpec(met, lambda b, g, i: (b, first_met(cut, i), 0, g * step))
    return queries, keys, pl.BlockSpec((1, cut.text, cut.lanes), lambda b, g, i: (b, 0, g))


def _places(cut: Plan) -> tuple[list[np.ndarray], list[pl.BlockSpec]]:
    """Rows and columns of a tile's queries (queries, 2), and of the keys that it meets (2, keys), from its corner."""
    queries, keys = (np.indices(size, np.int32).reshape(2, -1) for size in (cut.tile, cut.met))
    arrays = [np.ascontiguousarray(queries.T), keys]
    return arrays, [pl.BlockSpec(a.shape, lambda b, g, i: (0, 0)) for a in arrays]


def _options(call: Call, cut: Plan, q: jax.Array, *, backward: bool) -> dict[str, Any]:
    times = q.shape[0] * call.heads  # a head of an image
    cost = pl.CostEstimate(
        flops=times * cut.pairs() * cut.width * (10 if backward else 4),
        transcendentals=times * cut.pairs(),
        bytes_accessed=times // cut.heads * cut.moved(q.dtype.itemsize, backward=backward),
    )
    params = pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=core_memory() * 15 // 16
    )
    return {"cost_estimate": cost, "compiler_params": params, "interpret": call.interpret}
