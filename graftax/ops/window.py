"""Sliding-window attention in raster order, computed in bands: never an n x n matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from graftax.errors import BadInput
from graftax.ops.attention import MHA, attend
from graftax.ops.base import linear_keys
from graftax.spec import OpSpec, Option


def default_block(window: int) -> int:
    """Queries handled together. Small blocks waste less of the band, large ones feed a TPU's 128-wide matrix unit."""
    return max(128 if jax.default_backend() == "tpu" else 16, 2 * window)


def banded_attention(q: jax.Array, k: jax.Array, v: jax.Array, window: int, block: int | None = None) -> jax.Array:
    """Attention of every token to tokens at most `window` before or after it, clipped at the ends.

    q, k, v (b, n, h, k) -> (b, n, h, k). Queries are taken in blocks of s tokens; each block meets s + 2 window keys, so
    memory is n (s + 2 window) per head. Equal to dense attention under the mask |i - j| <= window (the grafting paper's
    SWA, w = 4; reference: flash attention with window_size=(w, w)).
    """
    b, n, h, width = q.shape
    window = min(window, n - 1)
    size = block or default_block(window)
    blocks = -(-n // size)
    q = jnp.pad(q, ((0, 0), (0, blocks * size - n), (0, 0), (0, 0))).reshape(b, blocks, size, h, width)
    k, v = (_bands(a, window, blocks, size) for a in (k, v))  # (b, blocks, size + 2 window, h, k)
    out = attend(q, k, v, _band_mask(n, window, blocks, size))  # (b, blocks, size, h, k)
    return out.reshape(b, blocks * size, h, width)[:, :n]


def _bands(a: jax.Array, window: int, blocks: int, size: int) -> jax.Array:
    """(b, n, h, k) -> (b, blocks, size + 2 window, h, k): the keys that each block of queries can see."""
    b, n, h, width = a.shape
    further = -(-2 * window // size)  # blocks after its own that a band reaches into
    # Slices of whole blocks, not a gather: the gradient is then pads and sums, no scatter.
    after = (blocks + further) * size - n - window
    a = jnp.pad(a, ((0, 0), (window, after), (0, 0), (0, 0))).reshape(b, blocks + further, size, h, width)
    neighbours = [a[:, i : i + blocks] for i in range(further + 1)]
    return jnp.concatenate(neighbours, axis=2)[:, :, : size + 2 * window]


def _band_mask(n: int, window: int, blocks: int, size: int) -> jax.Array:
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
    def check(cls, op: OpSpec, width: int, tokens: int, num_heads: int) -> None:
        if op.option("window") < 1:
            raise BadInput(f"swa window: got {op.option('window')}, expected 1 or more")

    @classmethod
    def recognise(cls, shapes, overrides) -> dict[str, Option] | None:
        if super().recognise(shapes, overrides) is None:
            return None
        return {"window": overrides.get("window", cls.options()["window"])}
