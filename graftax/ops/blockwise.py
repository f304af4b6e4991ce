"""Softmax attention tile by tile: never an n x m matrix, forward or backward.

Rabe and Staats, arXiv 2112.05682; Dao et al., "FlashAttention", arXiv 2205.14135, Algorithms 1 and 4: a running maximum and
sum over blocks of keys on the way there, probabilities computed again from the saved logarithm of the sum on the way back.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from graftax.ops.target import target

LOWEST = float(jnp.finfo(jnp.float32).min)
"""Where running maxima start. Finite, so that a query that sees no key has weights exp(-inf - LOWEST) = 0 and no NaN."""

Block = tuple[int, int]
"""Queries and keys of a tile."""

Mask = jax.Array | None


def default_block() -> Block:
    """Queries and keys of a tile: on CPU what stays in cache, elsewhere enough to fill the matrix units."""
    return (256, 512) if target() == "cpu" else (1024, 1024)


def blockwise_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, keys: jax.Array | None = None, block: Block | None = None
) -> jax.Array:
    """softmax(q k^T / sqrt(head dim)) v in memory linear in n and m, the softmax in float32.

    q (b, n, h, k), k and v (b, m, h, k) -> (b, n, h, k). `keys` (b, m) is True for those that are there; where none is, the
    result is zero. `block`: queries and keys of a tile, n and m need not be multiples. Products take the type of their
    inputs and add up in float32. Reverse-mode differentiable; between the passes it keeps its arguments, its result, and one
    float32 a query and head.
    """
    size, span = (min(most, length) for most, length in zip(block or default_block(), (q.shape[1], k.shape[1]), strict=True))
    extra = -k.shape[1] % span
    if keys is None and extra:
        keys = jnp.ones(k.shape[:2], bool)
    here = None if keys is None else _split(jnp.pad(keys, ((0, 0), (0, extra))), span)[:, :, None, None]
    out = _tiled(*(_blocks(a, s) for a, s in ((q * q.shape[-1] ** -0.5, size), (k, span), (v, span))), here)
    return _joined(out)[:, : q.shape[1]]


@jax.custom_vjp
def _tiled(q: jax.Array, k: jax.Array, v: jax.Array, here: Mask) -> jax.Array:
    """Scaled queries (i, b, h, s, k), keys and values (j, b, h, t, k), all by blocks -> (i, b, h, s, k). `here`
    (j, b, 1, 1, t) is True for keys that count."""
    return _forward(q, k, v, here)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, here: Mask) -> tuple[jax.Array, tuple[jax.Array | None, ...]]:
    out, logsum = jax.lax.map(lambda q_i: _row(q_i, k, v, here), q)
    return out, (q, k, v, here, out, logsum)


def _row(q: jax.Array, k: jax.Array, v: jax.Array, here: Mask) -> tuple[jax.Array, jax.Array]:
    """One block of queries (b, h, s, k) against all keys: result, and the logarithm of the softmax's sum (b, h, s)."""

    def tile(carry: tuple[jax.Array, ...], block: tuple[jax.Array, jax.Array, Mask]) -> tuple[tuple[jax.Array, ...], None]:
        out, top, total = carry
        k_j, v_j, here_j = block
        logits = _logits(q, k_j, here_j)  # (b, h, s, t)
        higher = jnp.maximum(top, logits.max(-1))
        weights, shrink = jnp.exp(logits - higher[..., None]), jnp.exp(top - higher)
        out = out * shrink[..., None] + _product("bhst,bhtk->bhsk", weights.astype(v_j.dtype), v_j)
        return (out, higher, total * shrink + weights.sum(-1)), None

    zeros = jnp.zeros(q.shape[:-1], jnp.float32)
    start = jnp.zeros(q.shape, jnp.float32), zeros + LOWEST, zeros
    (out, top, total), _ = jax.lax.scan(tile, start, (k, v, here))
    total = jnp.where(total > 0, total, 1)
    return (out / total[..., None]).astype(v.dtype), top + jnp.log(total)


def _backward(saved: tuple[jax.Array, ...], grad: jax.Array) -> tuple[jax.Array | None, ...]:
    q, k, v, here, out, logsum = saved
    # What the softmax takes away from the gradient of every weight of a query (FlashAttention, eq. 4): (i, b, h, s).
    mean = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), -1)

    def column(dq: jax.Array, block: tuple[jax.Array, jax.Array, Mask]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One block of keys against all queries: what it adds to their gradient (i, b, h, s, k), and its own."""
        tile = functools.partial(_tile_backward, *block)
        zeros = jnp.zeros(block[0].shape, jnp.float32)
        own, added = jax.lax.scan(tile, (zeros, zeros), (q, grad, logsum, mean))
        return dq + added, own

    dq, (dk, dv) = jax.lax.scan(column, jnp.zeros(q.shape, jnp.float32), (k, v, here))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


def _tile_backward(
    k: jax.Array, v: jax.Array, here: Mask, carry: tuple[jax.Array, jax.Array], row: tuple[jax.Array, ...]
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """One tile: gradients of its keys and values (b, h, t, k), added up, and of its queries (b, h, s, k), all float32."""
    (dk, dv), (q, grad, logsum, mean) = carry, row
    weights = jnp.exp(_logits(q, k, here) - logsum[..., None])  # (b, h, s, t)
    slope = weights * (_product("bhsk,bhtk->bhst", grad, v) - mean[..., None])
    weights, slope = weights.astype(v.dtype), slope.astype(q.dtype)
    dv = dv + _product("bhst,bhsk->bhtk", weights, grad)
    dk = dk + _product("bhst,bhsk->bhtk", slope, q)
    return (dk, dv), _product("bhst,bhtk->bhsk", slope, k)


_tiled.defvjp(_forward, _backward)


def _logits(q: jax.Array, k: jax.Array, here: Mask) -> jax.Array:
    """(b, h, s, k), (b, h, t, k) -> (b, h, s, t) float32, -inf for keys that are not there."""
    logits = _product("bhsk,bhtk->bhst", q, k)
    return logits if here is None else jnp.where(here, logits, -jnp.inf)


def _product(how: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(how, a, b, preferred_element_type=jnp.float32)


def _blocks(a: jax.Array, size: int) -> jax.Array:
    """(b, n, h, k) -> (blocks, b, h, size, k), zeros behind the last token."""
    return _split(jnp.pad(a, ((0, 0), (0, -a.shape[1] % size), (0, 0), (0, 0))), size).swapaxes(2, 3)


def _split(a: jax.Array, size: int) -> jax.Array:
    """(b, n, ...) -> (blocks, b, size, ...)."""
    return a.reshape(a.shape[0], -1, size, *a.shape[2:]).swapaxes(0, 1)


def _joined(a: jax.Array) -> jax.Array:
    """(blocks, b, h, size, k) -> (b, n, h, k)."""
    a = a.transpose(1, 0, 3, 2, 4)  # (b, blocks, size, h, k)
    return a.reshape(a.shape[0], -1, *a.shape[3:])
