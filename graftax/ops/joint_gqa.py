"""Joint attention with heads that share keys and values: grouped queries in a block of two streams."""

from __future__ import annotations

import jax

from graftax.ops.base import CHANGED, KEPT, Operator, Params
from graftax.ops.gqa import check_group, grouped_attention, pooled, repeated
from graftax.ops.joint import JointMHA
from graftax.spec import OpSpec, Sizes


class JointGQA(JointMHA):
    """`JointMHA` whose heads of queries share keys and values, `group` of them each, in both streams (`graftax.ops.gqa`).

    Taken over from a joint operator, shared heads are the means of those that they replace.

    Attributes:
        group: query heads that share one head of keys and values, a divisor of the heads.
    """

    group: int = 2

    kind = "joint_gqa"

    @property
    def sharing(self) -> int:
        return self.group

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return grouped_attention(q, k, v)

    def separate(self, layers: Params) -> Params:
        if self.group == 1:
            return layers
        return {**layers, "qkv": repeated(layers["q"], layers["kv"], self.sizes.heads, self.group)}

    def shared(self, layers: Params) -> Params:
        return layers if self.group == 1 else {**layers, **pooled(layers["qkv"], self.sizes.heads, self.group)}

    def start(self, donor: Operator) -> str:
        alike = isinstance(donor, JointMHA) and donor.kind in ("joint_mha", self.kind) and donor.sharing % self.group == 0
        return KEPT if alike else CHANGED

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        super().check(op, sizes)
        check_group(op, sizes)
