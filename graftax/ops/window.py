"""Sliding-window attention in raster order, computed in bands: never an n x n matrix."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from graftax.errors import BadInput
from graftax.ops.attention import MHA, attend
from graftax.ops.base import Overrides, Shapes, linear_keys
from graftax.ops.pallas.plan import takes
from graftax.ops.pallas.window import Band
from graftax.ops.target import target
from graftax.spec import OpSpec, Option, Sizes

LOOP_FROM = 2**16
"""Elements of q from which CPUs take one block of queries after the other; fewer are in cache anyway."""


def default_block(window: int) -> int:
    """Queries handled together. Small blocks waste less of the band, large ones feed a TPU's 128-wide matrix unit."""
    return max(128 if target() == "tpu" else 16, 2 * window)


def banded_attention(q: jax.Array, k: jax.Array, v: jax.Array, window: int, block: int | None = None) -> jax.Array:
    """Attention of every token to tokens at most `window` before or after it, clipped at the ends.

    q, k, v (b, n, h, k) -> (b, n, h, k). Queries are taken in blocks of s tokens; each block meets s + 2 window keys, so
    memory is at most n (s + 2 window) per head. Equal to dense attention under the mask |i - j| <= window (the grafting
    paper's SWA, w = 4; reference: flash attention with window_size=(w, w)).

    On CPU the blocks run one after the other and stay in cache; elsewhere, and under differentiation, all at once. On TPUs
    the same by a kernel.
    """
    seen = Band(q.shape[1], window)
    if takes(q, k, seen):
        from graftax.ops.pallas.grid import window_attention

        return window_attention(q, k, v, seen)
    size = block or max(24, 2 * window)
    if target() == "cpu" and q.size >= LOOP_FROM and q.shape[1] >= size + 2 * window:
        return _one_by_one(q, k, v, window, size)
    return _all_at_once(q, k, v, window, block)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _one_by_one(q: jax.Array, k: jax.Array, v: jax.Array, window: int, size: int) -> jax.Array:
    """The bands in a loop over blocks of queries, nothing copied; needs n >= size + 2 window."""
    n, seen = q.shape[1], size + 2 * window

    def block(i: jax.Array, out: jax.Array) -> jax.Array:
        # At the ends blocks and bands move inwards instead of hanging over; the mask goes by true positions.
        query, key = jnp.minimum(i * size, n - size), jnp.clip(i * size - window, 0, n - seen)
        q_i, (k_i, v_i) = _slice(q, query, size), (_slice(a, key, seen) for a in (k, v))
        near = abs(query + jnp.arange(size)[:, None] - key - jnp.arange(seen)) <= window
        return jax.lax.dynamic_update_slice_in_dim(out, attend(q_i, k_i, v_i, near), query, axis=1)

    return jax.lax.fori_loop(0, -(-n // size), block, jnp.zeros_like(q))


@_one_by_one.defjvp
def _one_by_one_jvp(window, size, primals, tangents):
    # The loop backwards would add every block's gradient to whole arrays; all at once it is twice as fast.
    return jax.jvp(functools.partial(_all_at_once, window=window), primals, tangents)


def _slice(a: jax.Array, start: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(a, start, size, axis=1)


def _all_at_once(q: jax.Array, k: jax.Array, v: jax.Array, window: int, block: int | None = None) -> jax.Array:
    """The bands as two batched products over all blocks."""
    b, n, h, width = q.shape
    size = max(block or default_block(window), window)  # a block sees no further than its neighbours
    blocks = -(-n // size)
    q, k, v = (_blocks(a, blocks, size) for a in (q, k, v))  # (b, blocks, size, h, k)
    k, v = _with_neighbours(k, window), _with_neighbours(v, window)  # (b, blocks, size + 2 window, h, k)
    # Heads before tokens, so that both products are plain batched matmuls.
    q, k, v = (a.transpose(0, 1, 3, 2, 4) for a in (q, k, v))
    logits = jnp.einsum("bjhqk,bjhmk->bjhqm", q, k, preferred_element_type=jnp.float32) * width**-0.5
    logits = jnp.where(band_mask(n, window, blocks, size), logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum("bjhqm,bjhmk->bjhqk", weights, v).transpose(0, 1, 3, 2, 4)
    return out.reshape(b, blocks * size, h, width)[:, :n]


def _blocks(a: jax.Array, blocks: int, size: int) -> jax.Array:
    """(b, n, h, k) -> (b, blocks, size, h, k), zeros behind the last token."""
    b, n, h, k = a.shape
    return jnp.pad(a, ((0, 0), (0, blocks * size - n), (0, 0), (0, 0))).reshape(b, blocks, size, h, k)


def _with_neighbours(a: jax.Array, window: int) -> jax.Array:
    """(b, blocks, size, h, k) -> (b, blocks, size + 2 window, h, k): what each block of queries can see.

    The edges of the neighbouring blocks are copied as slices: a third faster on CPU than gathering rows.
    """
    nothing = jnp.zeros_like(a[:, :1, :window])
    before = jnp.concatenate([nothing, a[:, :-1, a.shape[2] - window :]], axis=1)
    after = jnp.concatenate([a[:, 1:, :window], nothing], axis=1)
    return jnp.concatenate([before, a, after], axis=2)


def band_mask(n: int, window: int, blocks: int, size: int) -> jax.Array:
    """(blocks, 1, size, size + 2 window): True where a query may look. Padded queries see themselves, to stay finite."""
    query = size * jnp.arange(blocks)[:, None, None, None] + jnp.arange(size)[:, None]
    key = size * jnp.arange(blocks)[:, None, None, None] + jnp.arange(size + 2 * window) - window
    inside = (abs(query - key) <= window) & (key >= 0) & (key < n)
    return inside | ((query >= n) & (query == key))


class SWA(MHA):
    """Sliding-window attention with the same weights as `MHA` (key layout of flash-attention's MHA)."""

    window: int = 4

    kind = "swa"
    torch_keys = linear_keys("qkv", "Wqkv") + linear_keys("proj", "out_proj")

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return banded_attention(q, k, v, self.window)

    def attended(self) -> int:
        # The paper counts 2w + 1 keys for every query, also at the ends.
        return min(2 * self.window + 1, self.tokens)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        if op.option("window") < 1:
            raise BadInput(f"swa window: got {op.option('window')}, expected 1 or more")

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        if super().recognise(shapes, overrides) is None:
            return None
        return {"window": overrides.get("window", cls.options()["window"])}
