"""Self-attention that takes up rotary positions by degrees, from none."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from graftax.ops.attention_normed import MHANormed
from graftax.ops.base import CHANGED, KEPT, Cost, Operator, Overrides, Params, Shapes, TorchKey
from graftax.ops.rope import Rope, rotate
from graftax.spec import Option


class MHARope(MHANormed):
    """`mha_normed` whose heads turn by a learned share of the context's rotary angles, at first by none.

    Every head has a strength s: channels turn by s times their angle (`graftax.ops.rope.rotate`), not at all at s = 0 and as
    in `mha_normed` at s = 1. In the place of `mha` it starts at s = 0 and computes the same.

    Attributes:
        qk_norm: of `mha_normed`, by default none.
        bias: of `mha_normed`.
    """

    qk_norm: str = "none"

    kind = "mha_rope"
    default_init = "transplant"
    torch_keys = (*MHANormed.torch_keys, TorchKey("strength", "strength", "same"))

    def setup(self) -> None:
        super().setup()
        self.strength = self.param("strength", nn.initializers.zeros, (self.sizes.heads,), jnp.float32)

    def turn(self, q: jax.Array, k: jax.Array, rope: Rope | None) -> tuple[jax.Array, jax.Array]:
        if rope is None:
            return q, k
        return rotate(q, rope, self.strength), rotate(k, rope, self.strength)

    def cost(self) -> Cost:
        plain = super().cost()
        return Cost(plain.params + self.sizes.heads, plain.op_flops, plain.featurizer_flops)

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """Another attention's weights as `mha_normed` takes them, at full strength where that one turned by the whole
        angle."""
        taken = super().transplant(fresh, donor, weights, importance)
        if taken is None or isinstance(donor, MHARope):
            return None if taken is None else {**taken, "strength": weights["strength"]}
        return {**taken, "strength": jnp.full_like(fresh["strength"], "rope" in donor.reads)}

    def start(self, donor: Operator) -> str:
        if isinstance(donor, MHANormed):
            alike = donor.kind in ("mha_normed", self.kind) and (donor.qk_norm, donor.bias) == (self.qk_norm, self.bias)
        else:
            alike = donor.kind == "mha" and (self.qk_norm, self.bias) == ("none", "all")
        return KEPT if alike else CHANGED

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        rest = {name: shape for name, shape in shapes.items() if name != "strength"}
        if len(rest) == len(shapes):
            return None
        plain = {key.name for key in MHANormed.torch_keys if key.leaf.startswith(("qkv", "proj"))}
        return {"qk_norm": "none"} if set(rest) == plain else super().recognise(rest, overrides)
