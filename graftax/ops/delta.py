"""The gated delta rule over tokens, chunk by chunk in matrix products, and the decaying sums that normalise it.

Each head keeps a state S (c, k) and a sum z (k,). With keys u_t of unit length, values v_t, decays a_t, erasing strengths
e_t

    S_t = a_t S_{t-1} (I - e_t u_t u_t^T) + v_t u_t^T        z_t = a_t z_{t-1} + k_t

are read as S_t q_t and z_t . q_t. What a key held is taken away before a value is written there: with v_t = e_t times a
value the rule of Gated DeltaNet (Yang et al., arXiv 2412.06464, Section 3), with e_t = 0 linear attention that forgets.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from graftax.ops.ssd import decays, minus, prefix_sums

CHUNK = 32
"""Tokens handled together."""

Tokens = tuple[jax.Array, ...]
"""Queries and keys (b, n, h, k), values (b, n, h, c), queries and keys for the sums (b, n, h, k), log a and e (b, n, h)."""

State = tuple[jax.Array, jax.Array]
"""S (b, h, c, k) and z (b, h, k)."""


def delta_chunked(tokens: Tokens, chunk: int = CHUNK) -> tuple[jax.Array, jax.Array]:
    """S_t q_t (b, n, h, c) and z_t . q_t (b, n, h), float32, of `Tokens` whose keys have any length: a value is written with
    the length of its key, v_t = |k_t| value_t, and erased along its direction.

    A chunk's writes depend on each other through a triangular system, which is solved for all of its tokens at once (the WY
    form: arXiv 2406.06484, Section 3.2, with decays as in arXiv 2412.06464); what came before enters through the state,
    which a scan hands on. Gradients compute a chunk again from the state before it, but for a chunk that is all there is.
    """
    b, n, h, width = tokens[2].shape
    chunks = tuple(_chunks(a, min(chunk, n)) for a in tokens)
    if n <= chunk:
        _, read = _chunk(None, tuple(a[0] for a in chunks))
        out, weights = (a[None] for a in read)
    else:
        empty = jnp.zeros((b, h, width, tokens[1].shape[-1])), jnp.zeros((b, h, tokens[1].shape[-1]))
        _, (out, weights) = jax.lax.scan(jax.checkpoint(_chunk), empty, chunks)
    out = out.transpose(1, 0, 3, 2, 4).reshape(b, -1, h, width)  # of (chunks, b, h, s, c)
    return out[:, :n], weights.transpose(1, 0, 3, 2).reshape(b, -1, h)[:, :n]


def _chunk(state: State | None, tokens: Tokens) -> tuple[State | None, tuple[jax.Array, jax.Array]]:
    """State before a chunk -> that after it, and what its tokens read. None: nothing was written, and nobody reads on."""
    q, k, v, plain_q, plain_k, log_a, erase = tokens  # (b, h, s, ...)
    sums = prefix_sums(log_a)
    between, since = decays(sums), jnp.exp(sums[0] + sums[1])[..., None]  # (b, h, s, s), (b, h, s, 1)
    unit, length = _directions(k)
    overlap = jnp.tril(erase[..., None] * between * _product("bhik,bhjk->bhij", unit, unit), -1)
    held, read, weighed = (0.0, 0.0, 0.0) if state is None else _carried(state, unit, q, plain_q, since)
    written = _product("bhij,bhjc->bhic", unit_inverse(overlap), length * v - erase[..., None] * held)
    out = read + _product("bhij,bhjc->bhic", between * _product("bhik,bhjk->bhij", q, unit), written)
    weights = weighed + (between * _product("bhik,bhjk->bhij", plain_q, plain_k)).sum(-1)
    if state is None:
        return None, (out, weights)
    left = jnp.exp(minus((sums[0][..., -1:], sums[1][..., -1:]), sums))[..., None]
    last = since[..., -1:, :]  # (b, h, 1, 1)
    S = last * state[0] + _product("bhsc,bhsk->bhck", left * written, unit)
    return (S, last[..., 0] * state[1] + (left * plain_k).sum(2)), (out, weights)


def _carried(
    state: State, unit: jax.Array, q: jax.Array, plain_q: jax.Array, since: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a chunk's keys and queries find of the state before it, decayed: (b, h, s, c) twice, (b, h, s)."""
    S, z = state
    held, read = (since * _product("bhsk,bhck->bhsc", x, S) for x in (unit, q))
    return held, read, since[..., 0] * _product("bhsk,bhk->bhs", plain_q, z)


def _directions(k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys (..., k) of unit length, or zero where they are, and their lengths (..., 1); gradients at zero are zero."""
    square = jnp.square(k).sum(-1, keepdims=True)
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return k / jnp.where(square > 0, length, 1), length


@jax.custom_jvp
def unit_inverse(lower: jax.Array) -> jax.Array:
    """X = (I + L)^-1 of strictly lower triangular L (..., s, s), in 2 log2 s - 2 products; its derivative, -X dL X, in two.

    Inverses of blocks on the diagonal are joined two by two, X - X L X with the part of L that joins them: unlike the
    series I - L + L^2 - .. it sums up no large numbers that cancel.
    """
    size = lower.shape[-1]
    index, inverse = jnp.arange(size), jnp.eye(size)
    for level in range((size - 1).bit_length()):
        row, column = index[:, None] >> level, index >> level
        joining = jnp.where((row == column + 1) & (row % 2 == 1), lower, 0)
        step = (
            joining
            if level == 0
            else _product("...ij,...jk->...ik", _product("...ij,...jk->...ik", inverse, joining), inverse)
        )
        inverse = inverse - step
    return inverse


@unit_inverse.defjvp
def _inverse_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    inverse, change = unit_inverse(primals[0]), jnp.tril(tangents[0], -1)
    left = _product("...ij,...jk->...ik", inverse, change)
    return inverse, -_product("...ik,...kl->...il", left, inverse)


def delta_flops(tokens: int, heads: int, width: int, chunk: int = CHUNK) -> int:
    """FLOPs of `delta_chunked` per image and pass, heads of `width` channels: products of s x s and s x k matrices, and
    where there is more than one chunk those with the state, k x k, and its sums."""
    s = min(chunk, tokens)
    inverse = 4 * s**2 * max((s - 1).bit_length() - 1, 0)
    state = 6 * width**2 + 4 * width if tokens > chunk else 0
    return -(-tokens // s) * s * heads * (10 * s * width + inverse + state)


def _product(how: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(how, a, b, precision="highest")


def _chunks(a: jax.Array, size: int) -> jax.Array:
    """(b, n, h, ...) -> (chunks, b, h, size, ...) in float32, zeros behind the last token: they write nothing."""
    b, n = a.shape[:2]
    a = jnp.pad(a.astype(jnp.float32), ((0, 0), (0, -n % size), *[(0, 0)] * (a.ndim - 2)))
    return a.reshape(b, -1, size, *a.shape[2:]).swapaxes(0, 1).swapaxes(2, 3)
