"""Multi-head self-attention, the mixer of a DiT as published."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from graftax.ops.base import Cost, Operator, linear_keys
from graftax.ops.placement import place


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(head dim)) v, with the softmax in float32.

    q (..., n, h, k), k and v (..., m, h, k) -> (..., n, h, k). `mask` broadcasts to (..., h, n, m) and is True where a
    query may look; every query must see a key.
    """
    logits = jnp.einsum("...qhk,...mhk->...hqm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    out = jnp.einsum("...hqm,...mhk->...hqk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    # Normalised after the product: n k divisions instead of n m, and on CPU two passes over n m less.
    out = out / weights.sum(-1, keepdims=True)
    return out.astype(v.dtype).swapaxes(-2, -3)


class MHA(Operator):
    """Multi-head attention over all tokens (Vaswani et al. 2017, eq. 1; key layout of timm's Attention)."""

    kind = "mha"
    torch_keys = linear_keys("qkv", "qkv") + linear_keys("proj", "proj")
    readout = "proj"

    def setup(self) -> None:
        self.qkv = self.linear(3 * self.width, self.width, parts=3)
        self.proj = self.linear(self.width, self.width)

    def __call__(self, x: jax.Array) -> jax.Array:
        b, n, d = x.shape
        # Output features are ordered (three, heads, head dim).
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, d // self.num_heads)
        q, k, v = (place(qkv[:, :, i], "batch", None, "heads", None) for i in range(3))  # (b, n, h, k) each
        return self.proj(place(self.mix(q, k, v).reshape(b, n, d), "batch", None, "hidden"))

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """The attention proper, (b, n, h, k) each."""
        return attend(q, k, v)

    def cost(self) -> Cost:
        d, n = self.width, self.tokens
        # The softmax's exponentials and sums are counted (2 n^2 h), as in the paper's Table 4.
        return Cost(4 * d * d + 4 * d, self.attended() * n * (4 * d + 2 * self.num_heads), 8 * n * d * d)

    def attended(self) -> int:
        """Keys that one query is counted as seeing."""
        return self.tokens

    def transplant(self, fresh: dict[str, Any], donor: Operator, weights: dict[str, Any]) -> dict[str, Any] | None:
        return weights if isinstance(donor, MHA) else None
