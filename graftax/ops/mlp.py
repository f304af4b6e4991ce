"""The channel mixer: a two-layer GELU MLP of any expansion ratio."""

from __future__ import annotations

import flax.linen as nn
import jax

from graftax.errors import BadInput
from graftax.ops.base import Cost, Operator, linear_keys
from graftax.spec import OpSpec, Option


class MLP(Operator):
    """fc2(gelu_tanh(fc1 x)), hidden width round(ratio * d) (key layout of timm's Mlp; DiT uses ratio 4)."""

    ratio: float = 4.0

    kind = "mlp"
    slot = "mlp"
    regression_loss = "l2"
    torch_keys = linear_keys("fc1", "fc1") + linear_keys("fc2", "fc2")

    @property
    def hidden(self) -> int:
        """Width between the two layers."""
        return round(self.ratio * self.width)

    def setup(self) -> None:
        self.fc1 = self.linear(self.hidden, self.width)
        self.fc2 = self.linear(self.width, self.hidden)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(nn.gelu(self.fc1(x), approximate=True))

    def cost(self) -> Cost:
        d, m, n = self.width, self.hidden, self.tokens
        return Cost(2 * d * m + d + m, 4 * n * d * m)

    @classmethod
    def check(cls, op: OpSpec, width: int, tokens: int, num_heads: int) -> None:
        if round(op.option("ratio") * width) < 1:
            raise BadInput(f"mlp ratio: got {op.option('ratio')}, expected a hidden width of at least 1 at width {width}")

    @classmethod
    def recognise(cls, shapes, overrides) -> dict[str, Option] | None:
        if super().recognise(shapes, overrides) is None:
            return None
        hidden, width = shapes["fc1.weight"]
        return {"ratio": hidden / width}

    def transplant(self, fresh, donor, weights):
        return weights if isinstance(donor, MLP) and donor.hidden == self.hidden else None
