"""Multi-head self-attention, the mixer of a DiT as published."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from graftax.ops.base import IN_HIDDEN, OUT_HIDDEN, Axes, Cost, Operator, Params, linear_keys
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
    axes: ClassVar[Axes] = {"qkv/kernel": OUT_HIDDEN, "proj/kernel": IN_HIDDEN}
    readout = "proj"

    @property
    def inner(self) -> int:
        """Channels of all heads together, h k."""
        return self.sizes.heads * self.sizes.head_dim

    def setup(self) -> None:
        self.qkv = self.linear(3 * self.inner, self.width, parts=3)
        self.proj = self.linear(self.width, self.inner)

    def __call__(self, x: jax.Array) -> jax.Array:
        mixed = self.mix(*self.heads_of(x))  # (b, n, h, k)
        return self.proj(place(mixed.reshape(*x.shape[:2], self.inner), "batch", None, "hidden"))

    def heads_of(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of tokens x (b, n, d): (b, n, h, k) each."""
        b, n, _ = x.shape
        # Output features are ordered (three, heads, head dim).
        qkv = self.qkv(x).reshape(b, n, 3, self.sizes.heads, self.sizes.head_dim)
        # Going back, the parts of a split are joined; those of slices would be padded and added.
        parts = (part.squeeze(2) for part in jnp.split(qkv, 3, axis=2))
        q, k, v = (place(part, "batch", None, "heads", None) for part in parts)
        return q, k, v

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """The attention proper, (b, n, h, k) each."""
        return attend(q, k, v)

    def cost(self) -> Cost:
        d, n, inner = self.width, self.tokens, self.inner
        # The softmax's exponentials and sums are counted (2 n^2 h), as in the paper's Table 4.
        core = self.attended() * n * (4 * inner + 2 * self.sizes.heads)
        return Cost(4 * d * inner + 3 * inner + d, core, 8 * n * d * inner)

    def attended(self) -> int:
        """Keys that one query is counted as seeing."""
        return self.tokens

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        if not isinstance(donor, MHA):
            return None
        return {name: weights[name] for name in ("qkv", "proj")}
