"""Cross-attention: image tokens look at the tokens of a text, of which some are padding."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from graftax.ops.attention import full_attention
from graftax.ops.base import IN_HIDDEN, OUT_HIDDEN, Axes, Cost, Operator, Params, linear_keys
from graftax.ops.placement import place


class CrossMHA(Operator):
    """Multi-head attention of tokens x (b, n, d) to the context's text (b, m, d), masked by its `text_mask` (b, m).

    Keys as in PixArt's MultiHeadCrossAttention (PixArt-alpha, arXiv 2310.00426, Section 2.3). Padding has weight 0 exactly,
    as in PixArt's own code, which cuts it out (diffusers adds -10000 to its logits, the same in float32); a text of
    padding alone gives the bias of `proj`.
    """

    kind = "cross_mha"
    role = "cross"
    reads = ("text", "text_mask")
    torch_keys = linear_keys("q", "q_linear") + linear_keys("kv", "kv_linear") + linear_keys("proj", "proj")
    axes: ClassVar[Axes] = {"q/kernel": OUT_HIDDEN, "kv/kernel": OUT_HIDDEN, "proj/kernel": IN_HIDDEN}
    readout = "proj"

    @property
    def inner(self) -> int:
        """Channels of all heads together, h k."""
        return self.sizes.heads * self.sizes.head_dim

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        text = jnp.zeros((1, max(self.sizes.context, 1), self.width))
        return (jnp.zeros((1, self.tokens, self.width)),), {"text": text, "text_mask": None}

    def setup(self) -> None:
        self.q = self.linear(self.inner, self.width)
        self.kv = self.linear(2 * self.inner, self.width, parts=2)
        proj = self.linear(self.width, self.inner)
        # There is no gate: a model from scratch starts without its text, as PixArt's does.
        self.proj = proj if self.init_style == "torch" else proj.clone(kernel_init=nn.initializers.zeros)

    def __call__(self, x: jax.Array, *, text: jax.Array, text_mask: jax.Array | None) -> jax.Array:
        (b, n, _), m, heads = x.shape, text.shape[1], (self.sizes.heads, self.sizes.head_dim)
        q = self.q(x).reshape(b, n, *heads)
        k, v = (part.squeeze(2) for part in jnp.split(self.kv(text).reshape(b, m, 2, *heads), 2, axis=2))
        q, k, v = (place(part, "batch", None, "heads", None) for part in (q, k, v))
        mixed = full_attention(q, k, v, None if text_mask is None else text_mask.astype(bool))  # (b, n, h, k)
        return self.proj(place(mixed.reshape(b, n, self.inner), "batch", None, "hidden"))

    def cost(self) -> Cost:
        d, n, m, inner = self.width, self.tokens, self.sizes.context, self.inner
        core = m * n * (4 * inner + 2 * self.sizes.heads)  # the softmax counted as in self-attention
        return Cost(4 * d * inner + 3 * inner + d, core, 4 * n * d * inner + 4 * m * d * inner)

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        return weights if isinstance(donor, CrossMHA) else None
