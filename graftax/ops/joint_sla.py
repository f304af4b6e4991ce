"""Joint sparse-linear attention: blocks of one sequence of text and image."""

from __future__ import annotations

import jax

from graftax.ops.base import CHANGED, KEPT, Cost, Operator, silent
from graftax.ops.joint import JointMHA
from graftax.ops.sla import check_sparse_linear, kept, sparse_linear, sparse_linear_cost
from graftax.spec import OpSpec, Sizes


class JointSLA(JointMHA):
    """`graftax.ops.sla.SLA` over [txt | img], with the weights, norms and rotary positions of `JointMHA`; features are of
    queries and keys at their positions, as attention sees them.

    Attributes:
        block: tokens of a block, of queries as of keys.
        topk: share of the blocks of keys that a query attends to.
        feature: phi of `graftax.ops.linear`.
        covers: keys of the linear branch, one of `graftax.ops.sla.COVERS`.
    """

    block: int = 64
    topk: float = 0.2
    feature: str = "softmax"
    covers: str = "all"

    kind = "joint_sla"

    def setup(self) -> None:
        super().setup()
        self.proj_l = silent(self.sizes.head_dim, self.dtype)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return sparse_linear(q, k, v, self.proj_l, self.block, self.topk, self.feature, self.covers)

    def core(self) -> Cost:
        return sparse_linear_cost(self.asking, self.tokens, self.sizes, self.block, self.topk)

    def start(self, donor: Operator) -> str:
        whole = kept(self.tokens, self.block, self.topk) * self.block >= self.tokens
        return KEPT if self == donor or (whole and donor.kind == "joint_mha") else CHANGED

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        super().check(op, sizes)
        check_sparse_linear(op)
