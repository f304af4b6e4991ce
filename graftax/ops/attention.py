"""Multi-head self-attention, the mixer of a DiT as published."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from graftax.ops.base import IN_HIDDEN, OUT_HIDDEN, Axes, Cost, Operator, Params, linear_keys
from graftax.ops.blockwise import LOWEST, blockwise_attention
from graftax.ops.kernels import cudnn_attention, cudnn_takes, gpu_capability, splash_attention
from graftax.ops.placement import place
from graftax.ops.target import target

DENSE_BELOW = {"cpu": 1024**2, "gpu": 2048**2, "tpu": 2048**2}
"""Pairs of a query and a key, by target, from which full attention no longer goes through the n x m matrix.

On CPU by processor time (two cores of an Intel Xeon with AVX-512, heads of 72, 4 of them, float32): dense over tiles at 256,
512, 1,024, 1,536, 2,048 tokens is 0.95, 0.93, 1.5, 1.5, 1.5 forward and 1.0, 1.2, 1.1, 1.2, 1.3 with gradients. On
accelerators by memory, not by time: there the matrices of 16 heads in float32 pass 256 MB an image.
"""


def full_attention(q: jax.Array, k: jax.Array, v: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(head dim)) v over all keys, in the form that suits size and target (`attention_form`).

    q (b, n, h, k), k and v (b, m, h, k) -> (b, n, h, k). `keys` (b, m) is True for those that are there, as the words of a
    padded text; where none is, the result is zero. All forms compute the same, with the softmax in float32.
    """
    form = attention_form(q, k, keys)
    if form == "cudnn":
        return cudnn_attention(q, k, v)
    if form == "splash":
        return splash_attention(q, k, v, keys)
    if form == "blockwise":
        return blockwise_attention(q, k, v, keys)
    return attend(q, k, v, None if keys is None else keys[:, None, None])


def attention_form(q: Any, k: Any, keys: jax.Array | None = None) -> str:
    """How `full_attention` computes on arrays, or their shapes: "dense" below `DENSE_BELOW`; above it "splash" on TPUs,
    "cudnn" on GPUs where that takes the heads and no key is masked, "blockwise" everywhere else."""
    if q.shape[1] * k.shape[1] < DENSE_BELOW[target()]:
        return "dense"
    if target() == "tpu":
        return "splash"
    if target() == "gpu" and keys is None and cudnn_takes(q.shape[-1], q.dtype, gpu_capability()):
        return "cudnn"
    return "blockwise"


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(head dim)) v through the n x m matrix, with the softmax in float32.

    q (..., n, h, k), k and v (..., m, h, k) -> (..., n, h, k). `mask` broadcasts to (..., h, n, m) and is True where a
    query may look; a query that may look nowhere gets zero.
    """
    logits = jnp.einsum("...qhk,...mhk->...hqm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    top = jnp.maximum(logits.max(-1, keepdims=True), LOWEST)
    weights = jnp.exp(logits - jax.lax.stop_gradient(top))
    out = jnp.einsum("...hqm,...mhk->...hqk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    total = weights.sum(-1, keepdims=True)
    # Normalised after the product: n k divisions instead of n m, and on CPU two passes over n m less.
    out = out / (total if mask is None else jnp.where(total > 0, total, 1))
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

    def __call__(self, x: jax.Array, **more: Any) -> jax.Array:
        mixed = self.mix(*self.heads_of(x), **more)  # (b, n, h, k)
        return self.proj(place(mixed.reshape(*x.shape[:2], self.inner), "batch", None, "hidden"))

    def heads_of(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of tokens x (b, n, d): (b, n, h, k) each."""
        b, n, _ = x.shape
        # Output features are ordered (three, heads, head dim). Heads are told apart last: TPUs pad them, and a kernel that
        # takes them side by side then gets them as they were.
        qkv = self.qkv(x).reshape(b, n, 3, self.inner)
        # Going back, the parts of a split are joined; those of slices would be padded and added.
        parts = (part.reshape(b, n, self.sizes.heads, self.sizes.head_dim) for part in jnp.split(qkv, 3, axis=2))
        q, k, v = (place(part, "batch", None, "heads", None) for part in parts)
        return q, k, v

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """The attention proper, (b, n, h, k) each; with what `__call__` of a subclass passes on beside them."""
        return full_attention(q, k, v)

    def cost(self) -> Cost:
        d, n, inner = self.width, self.tokens, self.inner
        # The softmax's exponentials and sums are counted (2 n^2 h), as in the paper's Table 4.
        core = self.pairs() * (4 * inner + 2 * self.sizes.heads)
        return Cost(4 * d * inner + 3 * inner + d, core, 8 * n * d * inner)

    def pairs(self) -> int:
        """Pairs of a query and a key that it is counted as seeing."""
        return self.tokens * self.attended()

    def attended(self) -> int:
        """Keys that one query is counted as seeing."""
        return self.tokens

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """Another attention's projections."""
        return donor.projections(weights) if isinstance(donor, MHA) else None

    def projections(self, weights: Params) -> Params:
        """The projections among its weights as `MHA` has them, biases of zero where there are none: {"qkv", "proj"}."""
        layers = {name: weights[name] for name in ("qkv", "proj")}
        return {
            name: layer if "bias" in layer else {**layer, "bias": jnp.zeros_like(layer["kernel"][0])}
            for name, layer in layers.items()
        }
