"""The state-space scan of Mamba-2 in two forms that agree: token by token, and chunk by chunk in matrix products.

Each head keeps a state H (s, k), with s the state size and k the head dim, and B and C are shared by all heads:

    H_t = exp(A dt_t) H_{t-1} + B_t (dt_t x_t)^T        y_t = H_t^T C_t

Unrolled, y_i = sum_{j <= i} (C_i . B_j) exp(sum_{j < m <= i} A dt_m) dt_j x_j: attention without softmax, with weights that
decay ("state-space duality", arXiv 2405.21060, Sections 5 and 6).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from graftax.errors import BadInput
from graftax.ops.target import target

Prefix = tuple[jax.Array, jax.Array]
"""Sums in two parts, to be subtracted part by part."""

MAX_CHUNK = 512
"""Above, the sums of decays would no longer be exact."""


def default_chunk() -> int:
    """Tokens handled together. CPU caches like small chunks (`graftax bench mamba2`); a TPU's matrix unit is 128 wide."""
    return 128 if target() == "tpu" else 32


def ssd_sequential(x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array) -> jax.Array:
    """The definition, one token after the other, in float32: what `ssd_chunked` is tested and timed against.

    x (b, n, h, k), dt (b, n, h) positive, A (h,) negative, B and C (b, n, s) -> y (b, n, h, k) of x's type.
    """

    def step(state: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        x, dt, B, C = token
        state = jnp.exp(A * dt)[..., None, None] * state  # (b, h, k, s)
        state = state + (dt[..., None] * x)[..., None] * B[:, None, None, :]
        return state, jnp.einsum("bhks,bs->bhk", state, C)

    tokens = tuple(jnp.moveaxis(a.astype(jnp.float32), 1, 0) for a in (x, dt, B, C))
    b, _, h, k = x.shape
    _, y = jax.lax.scan(step, jnp.zeros((b, h, k, B.shape[-1]), jnp.float32), tokens)
    return jnp.moveaxis(y, 0, 1).astype(x.dtype)


def ssd_chunked(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, chunk: int | None = None
) -> jax.Array:
    """`ssd_sequential` in chunks of q tokens, for any n: q (s + h k) + 2 s h k multiply-adds per token, all in matmuls.

    Within a chunk the unrolled sum is a masked product of q x q matrices, with C B^T shared by all heads; what came before
    enters through the state, which a scan hands from chunk to chunk (arXiv 2405.21060, Listing 1, with the scan over whole
    chunks so that only one is in memory). Gradients recompute a chunk from the state before it. Matrix products take x's
    type, decays and state are float32. Shapes as in `ssd_sequential`; raises `BadInput` on a chunk outside
    1 to 512.
    """
    b, n, h, k = x.shape
    chunk = default_chunk() if chunk is None else chunk
    if not 1 <= chunk <= MAX_CHUNK:
        raise BadInput(f"ssd chunk: got {chunk}, expected 1 to {MAX_CHUNK}")
    size = min(chunk, n)
    empty = jnp.zeros((b, h * k, B.shape[-1]), jnp.float32)
    step = jax.checkpoint(functools.partial(_chunk, A))
    _, y = jax.lax.scan(step, empty, tuple(_chunks(a, size) for a in (x, dt, B, C)))  # y (chunks, b, q, h, k)
    return y.swapaxes(0, 1).reshape(b, -1, h, k)[:, :n]


def _chunk(A: jax.Array, state: jax.Array, tokens: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """The state (b, h k, s) before a chunk and the chunk's (x, dt, B, C) -> the state after it and y (b, q, h, k)."""
    x, dt, B, C = tokens
    b, q, h, k = x.shape
    dt = dt.astype(jnp.float32).swapaxes(1, 2)  # (b, h, q)
    sums = prefix_sums(A[:, None] * dt)
    decay = jnp.exp(sums[0] + sums[1])  # since before the chunk
    # Tokens last, so that each product is a plain batched matmul: a quarter off the gradient's time on CPU.
    u = dt[:, :, None] * x.transpose(0, 2, 3, 1)  # (b, h, k, q), float32
    y = _matmul("bhkj,bhij->bhki", u.astype(x.dtype), _attention(sums, B, C).astype(x.dtype))
    y = y + decay[:, :, None] * _matmul("bcs,bis->bci", state.astype(x.dtype), C).reshape(u.shape)
    left = jnp.exp(minus((sums[0][..., -1:], sums[1][..., -1:]), sums))  # of each token at the end of the chunk
    u = (left[:, :, None] * u).reshape(b, h * k, q).astype(x.dtype)
    kept = jnp.repeat(decay[..., -1], k, axis=-1)[..., None]  # (b, h k, 1)
    return kept * state + _matmul("bcj,bjs->bcs", u, B), y.astype(x.dtype).transpose(0, 3, 1, 2)


def _attention(sums: Prefix, B: jax.Array, C: jax.Array) -> jax.Array:
    """What query i of a chunk takes of token j, (b, h, q, q): (C_i . B_j) times the decay from j to i, 0 for j > i."""
    return _matmul("bis,bjs->bij", C, B)[:, None] * decays(sums)


def decays(sums: Prefix) -> jax.Array:
    """What of token j is left at token i, (..., q, q), 0 for j > i; of the `prefix_sums` (..., q) of what is lost."""
    rows, columns = (sums[0][..., None], sums[1][..., None]), (sums[0][..., None, :], sums[1][..., None, :])
    q = rows[0].shape[-2]
    past = jnp.tri(q, k=-1, dtype=bool)
    # The diagonal, which has no decay, is kept out of the gradient: its two equal parts would drown the others.
    return jnp.exp(jnp.where(past, minus(rows, columns), jnp.where(jnp.eye(q, dtype=bool), 0, -jnp.inf)))


def _matmul(subscripts: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)


def prefix_sums(a: jax.Array) -> Prefix:
    """Sums of a[..., :i + 1], a <= 0, along the last axis in two parts: multiples of 2^-8, exact, and the small rest.

    The decay over a few tokens is a difference of sums over many, where plain float32 loses digits (5e-4 at 256 tokens).
    Here the large parts cancel without error: up to 512 tokens they stay below 2^24 quanta.
    """
    a = jnp.maximum(a, -128)  # a decay of exp(-128) is nothing in float32
    coarse = jax.lax.stop_gradient(jnp.round(a * 256) / 256)
    # As products with a triangle: XLA:CPU's cumsum takes as long as all the rest of a chunk above 16 tokens.
    ones = jnp.tri(a.shape[-1])
    total, rest = (jnp.einsum("...j,ij->...i", part, ones, precision="highest") for part in (coarse, a - coarse))
    return total, rest


def minus(a: Prefix, b: Prefix) -> jax.Array:
    """Differences of prefix sums."""
    return (a[0] - b[0]) + (a[1] - b[1])


def _chunks(a: jax.Array, size: int) -> jax.Array:
    """(b, n, ...) -> (chunks, b, size, ...), zeros behind the last token: with dt = 0 they change nothing."""
    b, n = a.shape[:2]
    a = jnp.pad(a, ((0, 0), (0, -n % size), *[(0, 0)] * (a.ndim - 2)))
    return a.reshape(b, -1, size, *a.shape[2:]).swapaxes(0, 1)
