"""Joint gated delta attention: over text and image as one sequence, both ways."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from graftax.ops.attention_normed import turned
from graftax.ops.base import CHANGED, KEPT, Cost, Operator, silent
from graftax.ops.delta import delta_flops
from graftax.ops.gated_delta import gated_delta, gates_cost
from graftax.ops.joint import STREAMS
from graftax.ops.joint_linear import JointLinear
from graftax.ops.linear import FEATURES
from graftax.ops.mamba2 import SCANS
from graftax.ops.rope import Rope


class JointGatedDelta(JointLinear):
    """`graftax.ops.gated_delta` over [txt | img] and back, with the weights, norms and rotary positions of `JointLinear`.

    Each stream has a layer for its gates, zero at first, so that it starts as joint linear attention.
    """

    kind = "joint_gated_delta"

    def setup(self) -> None:
        super().setup()
        self.txt_gates, self.img_gates = (silent(2 * self.sizes.heads, self.dtype) for _ in STREAMS)

    def __call__(self, streams: dict[str, jax.Array], **reads: Any) -> dict[str, jax.Array]:
        gates = [getattr(self, f"{name}_gates")(streams[name]) for name in STREAMS]
        return super().__call__(streams, gates=jnp.concatenate(gates, axis=1), **reads)

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array, *, rope: Rope | None, gates: jax.Array) -> jax.Array:
        phi = FEATURES[self.feature]
        q, k = phi(q).astype(v.dtype), phi(k).astype(v.dtype)
        mixed = gated_delta(q, k, v, gates, SCANS["bidirectional"], self.sizes.grid, turned(q, k, rope))
        return self.answered(mixed)

    def start(self, donor: Operator) -> str:
        alike = (
            isinstance(donor, JointLinear) and donor.kind in ("joint_linear", self.kind) and donor.feature == self.feature
        )
        return KEPT if alike else CHANGED

    def core(self) -> Cost:
        gates = gates_cost(self.tokens, self.width, self.sizes.heads)
        core = 2 * delta_flops(self.tokens, self.sizes.heads, self.sizes.head_dim)
        return Cost(2 * gates.params, core, gates.featurizer_flops)
