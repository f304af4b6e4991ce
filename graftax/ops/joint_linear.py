"""Joint linear attention: a feature map in place of the softmax, over text and image at once."""

from __future__ import annotations

import jax

from graftax.ops.attention_normed import turned
from graftax.ops.base import Cost
from graftax.ops.joint import JointMHA
from graftax.ops.linear import FEATURES, check_feature, linear_attention, linear_flops
from graftax.ops.rope import Rope
from graftax.spec import OpSpec, Sizes


class JointLinear(JointMHA):
    """`linear_attention` over all tokens of text and image, with the weights of `JointMHA`.

    Rotary positions turn the features of queries and keys (`linear_attention`), after the norms and phi.

    Attributes:
        feature: phi, "relu", "elu" (elu(x) + 1) or "softmax" (over a head's channels).
    """

    feature: str = "relu"

    kind = "joint_linear"

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array, *, rope: Rope | None) -> jax.Array:
        phi = FEATURES[self.feature]
        q, k = phi(q).astype(v.dtype), phi(k).astype(v.dtype)
        placed_q, placed_k = turned(q, k, rope)
        return linear_attention(self.answered(q), k, v, (self.answered(placed_q), placed_k))

    def core(self) -> Cost:
        return Cost(0, linear_flops(self.asking, self.tokens, self.inner, self.sizes.head_dim))

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        super().check(op, sizes)
        check_feature(op)
