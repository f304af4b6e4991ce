"""The window kernel itself: what is done with one strip of queries, tile by tile and head by head."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from graftax.ops.kernels import LANES
from graftax.ops.pallas.plan import SUBLANES, Plan
from graftax.ops.pallas.window import Window

LOWEST = -1e30
"""What is added to a logit that is masked: finite, so that queries which see nothing stay so."""

Ref = Any
Pieces = list[jax.Array]
"""Of the image, and of the text where there is one."""


def forward_kernel(
    at_queries: Ref, at_keys: Ref, q: Ref, k: Ref, v: Ref, *rest: Ref, cut: Plan, window: Window
) -> None:  # fmt: skip
    """One strip of `graftax.ops.pallas.grid.window_attention`: blocks q, k, v, keys and values of a text, the result."""
    *texts, out = rest
    i = pl.program_id(2)

    @pl.loop(0, cut.tiles)
    def _(j: jax.Array) -> None:
        tile = Tile(cut, window, i, j, at_queries, at_keys)
        write = Writer(out, cut, tile.queries)
        for head in _heads(cut):
            keys, values = _met(head, tile, k, v, texts)
            weights, total = _weights(head.alone(q, tile.queries), keys, tile.bias, cut.width)
            mixed = sum(_product(w, value, (1, 0)) for w, value in zip(weights, values, strict=True))
            write(head, mixed / total)


def backward_kernel(
    at_queries: Ref, at_keys: Ref, slope: Ref, q: Ref, k: Ref, v: Ref, texts: Sequence[Ref], image: Sequence[Ref],
    dtexts: Sequence[Ref], *sums: Ref, cut: Plan, window: Window,
) -> None:  # fmt: skip
    """One strip of its gradients: `image` those of q, and of k and v for an earlier strip whose `sums` are complete."""
    i, scale = pl.program_id(2), cut.width**-0.5
    dq, *late = image
    _move(cut, i, sums, dtexts)

    @pl.loop(0, jnp.where(i < cut.strips, cut.tiles, 0))
    def _(j: jax.Array) -> None:
        tile = Tile(cut, window, i, j, at_queries, at_keys)
        write = Writer(dq, cut, tile.queries)
        for head in _heads(cut):
            keys, values = _met(head, tile, k, v, texts)
            query, change = head.alone(q, tile.queries), head.alone(slope, tile.queries)
            weights, total = _weights(query, keys, tile.bias, cut.width)
            change = (change / total).astype(q.dtype)  # instead of the weights: (queries, k), not (queries, keys)
            slopes = _slopes(weights, total, [_product(change, value, (1, 1)) for value in values])
            write(head, scale * sum(_product(s, key, (1, 0)) for s, key in zip(slopes, keys, strict=True)))
            for held, a, b in zip(sums, (slopes, weights), (query, change), strict=True):
                held[(*tile.held, head.lanes)] += _product(a[0], b, (0, 0)).reshape(*cut.met, -1)
            for held, a, b in zip(dtexts, (slopes, weights), (query, change), strict=False):
                held[0, :, head.lanes] += _product(a[1], b, (0, 0))

    @pl.loop(0, cut.strip)
    def _(row: jax.Array) -> None:
        for out, held, factor in zip(late, sums, (scale, 1.0), strict=True):
            out[0, row] = (held[row + cut.before - cut.lag * cut.strip] * factor).astype(out.dtype)


def first_met(cut: Plan, i: Any) -> Any:
    """The first row of keys that strip i meets. At the borders they move inwards; the mask goes by true places."""
    return jnp.clip(i * cut.strip - cut.reach[0], 0, cut.rows - cut.strip_met)


class Tile:
    """One tile of a strip: where its queries and keys are, and which of them meet.

    Attributes:
        queries: rows and columns in blocks of queries.
        keys: in blocks of keys.
        held: in the sums of gradients.
        bias: (queries, keys), what is added to logits.
    """

    def __init__(self, cut: Plan, window: Window, i: jax.Array, j: jax.Array, at_queries: Ref, at_keys: Ref) -> None:
        rows, columns = cut.tile
        across = cut.columns // columns
        # Not // and %, whose lowering asks which TPU this machine has.
        row, column = jax.lax.div(j, across) * rows, pl.multiple_of(jax.lax.rem(j, across) * columns, columns)
        top = jnp.clip(i * cut.strip + row - cut.reach[0], 0, cut.rows - cut.met[0])
        left = pl.multiple_of(jnp.clip(column - cut.reach[1], 0, cut.columns - cut.met[1]), SUBLANES)
        across_keys = pl.ds(left, cut.met[1])
        self.queries = pl.ds(row, rows), pl.ds(column, columns)
        self.keys = pl.ds(top - first_met(cut, i), cut.met[0]), across_keys
        self.held = pl.ds(top - i * cut.strip + cut.before, cut.met[0]), across_keys
        query = at_queries[:, 0:1] + i * cut.strip + row, at_queries[:, 1:2] + column
        self.bias = jnp.where(window.sees(*query, at_keys[0:1] + top, at_keys[1:2] + left), 0.0, LOWEST)


class Head:
    """One head among the channels of a block, read and written in whole registers: to move channels within them would take
    longest of all. What queries hold of other heads is zero there, so that keys may hold anything.

    Attributes:
        lanes: of the block, those of the head and what else is in its registers.
        own: (1, lanes), True for those of the head.
        ready: the first so many lanes have nothing of later heads.
    """

    def __init__(self, cut: Plan, head: int) -> None:
        start, end = head * cut.width, (head + 1) * cut.width
        first = start // LANES * LANES
        self.lanes = slice(first, min(-(-end // LANES) * LANES, cut.lanes))
        lane = first + jax.lax.broadcasted_iota(jnp.int32, (1, self.lanes.stop - first), 1)
        self.own = (lane >= start) & (lane < end)
        self.ready = (end if end == cut.lanes else end // LANES * LANES) - first

    def read(self, ref: Ref, at: tuple[Any, ...]) -> jax.Array:
        """(tokens, lanes)."""
        block = ref[(0, *at, self.lanes)]
        return block.reshape(-1, block.shape[-1])

    def alone(self, ref: Ref, at: tuple[Any, ...]) -> jax.Array:
        """(tokens, lanes), zero in those of other heads."""
        block = self.read(ref, at)
        return jnp.where(self.own, block, jnp.zeros_like(block))


def _heads(cut: Plan) -> Iterator[Head]:
    return (Head(cut, head) for head in range(cut.heads))


class Writer:
    """Writes a tile's results, one head after the other: a register that it shares with the next head waits for that."""

    def __init__(self, ref: Ref, cut: Plan, at: tuple[Any, ...]) -> None:
        self.ref, self.cut, self.at = ref, cut, at
        self.waiting: jax.Array | None = None

    def __call__(self, head: Head, value: jax.Array) -> None:
        """`value` (tokens, lanes) has the head's result in its own lanes, anything in others."""
        value, waiting = jnp.where(head.own, value, 0), None
        for start in range(0, value.shape[1], LANES):
            part = value[:, start : start + LANES]
            if start == 0 and self.waiting is not None:
                part = part + self.waiting
            if start < head.ready:
                lanes = slice(head.lanes.start + start, head.lanes.start + start + part.shape[1])
                self.ref[(0, *self.at, lanes)] = part.reshape(*self.cut.tile, -1).astype(self.ref.dtype)
            else:
                waiting = part
        self.waiting = waiting


def _met(head: Head, tile: Tile, k: Ref, v: Ref, texts: Sequence[Ref]) -> tuple[Pieces, Pieces]:
    """Keys and values that a tile meets, (keys, lanes) each."""
    pieces = [[head.read(image, tile.keys)] for image in (k, v)]
    for piece, text in zip(pieces, texts, strict=False):
        piece.append(head.read(text, (slice(None),)))
    return pieces[0], pieces[1]


def _product(a: jax.Array, b: jax.Array, sides: tuple[int, int]) -> jax.Array:
    """The matrix product over these axes, in float32, `a` rounded to the type of `b`; of float32 at its full precision."""
    a, precision = a.astype(b.dtype), jax.lax.Precision.HIGHEST if b.dtype == jnp.float32 else None
    dimensions = (((sides[0],), (sides[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _weights(q: jax.Array, keys: Pieces, bias: jax.Array, width: int) -> tuple[Pieces, jax.Array]:
    """The softmax before its division, and its sums (queries, 1)."""
    logits = [_product(q, k, (1, 1)) for k in keys]
    logits[0] += bias
    top = functools.reduce(jnp.maximum, [x.max(1, keepdims=True) for x in logits])
    scale = width**-0.5 * math.log2(math.e)
    weights = [jnp.exp2((x - top) * scale) for x in logits]
    return weights, functools.reduce(jnp.add, [x.sum(1, keepdims=True) for x in weights])


def _slopes(weights: Pieces, total: jax.Array, changes: Pieces) -> Pieces:
    """Gradients of the logits: `changes` are those of the normalised weights, over `total`."""
    mean = functools.reduce(jnp.add, [(w * c).sum(1, keepdims=True) for w, c in zip(weights, changes, strict=True)]) / total
    return [w * (c - mean) for w, c in zip(weights, changes, strict=True)]


def _move(cut: Plan, i: jax.Array, sums: Sequence[Ref], dtexts: Sequence[Ref]) -> None:
    """Let the sums begin a strip later; all are zero at the first."""

    @pl.when(i == 0)
    def _() -> None:
        for a in dtexts:
            a[...] = jnp.zeros_like(a)

    @pl.loop(0, cut.held)
    def _(row: jax.Array) -> None:
        for a in sums:
            later = a[jnp.minimum(row + cut.strip, cut.held - 1)]
            a[row] = jnp.where((i > 0) & (row < cut.held - cut.strip), later, jnp.zeros_like(later))
