"""Linear attention with normed queries and keys and rotary positions, for blocks of one sequence."""

from __future__ import annotations

import jax

from graftax.ops.attention_normed import MHANormed, turned
from graftax.ops.base import Cost, Overrides, Shapes
from graftax.ops.linear import FEATURES, check_feature, linear_attention, linear_flops
from graftax.ops.rope import Rope
from graftax.spec import OpSpec, Option, Sizes


class LinearNormed(MHANormed):
    """`linear_attention` with the weights of `MHANormed`: phi of normed queries and keys, turned to their positions in what
    weighs the values alone, as in `JointLinear`. For the single blocks of Flux and AuraFlow.

    Attributes:
        feature: phi, "relu", "elu" (elu(x) + 1) or "softmax" (over a head's channels).
    """

    feature: str = "relu"

    kind = "linear_normed"
    torch_keys = ()

    def mix_placed(self, q: jax.Array, k: jax.Array, v: jax.Array, rope: Rope | None) -> jax.Array:
        phi = FEATURES[self.feature]
        q, k = phi(q).astype(v.dtype), phi(k).astype(v.dtype)
        return linear_attention(q, k, v, turned(q, k, rope))

    def cost(self) -> Cost:
        plain = super().cost()
        core = linear_flops(self.tokens, self.tokens, self.inner, self.sizes.head_dim)
        return Cost(plain.params, core, plain.featurizer_flops)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        super().check(op, sizes)
        check_feature(op)

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        """Never: no file tells it from `MHANormed`."""
        return None
