"""The channel mixer: a two-layer GELU MLP of any expansion ratio."""

from __future__ import annotations

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from graftax.errors import BadInput
from graftax.ops.base import (
    CHANGED,
    IN_HIDDEN,
    KEPT,
    OUT_HIDDEN,
    Axes,
    Cost,
    Operator,
    Overrides,
    Params,
    Shapes,
    linear_keys,
)
from graftax.ops.placement import place
from graftax.spec import OpSpec, Option, Sizes


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """GELU in its tanh form (Hendrycks and Gimpel, arXiv 1606.08415, Section 2), which keeps one array for the way back."""
    return nn.gelu(x, approximate=True)


@gelu.defjvp
def _gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    factor = math.sqrt(2 / math.pi)
    tanh = jnp.tanh(factor * (x + 0.044715 * x**3))
    slope = 0.5 * (1 + tanh) + 0.5 * factor * x * (1 - tanh**2) * (1 + 3 * 0.044715 * x**2)
    return gelu(x), slope * dx


class MLP(Operator):
    """fc2(gelu_tanh(fc1 x)), hidden width round(ratio * d) (key layout of timm's Mlp; DiT uses ratio 4)."""

    ratio: float = 4.0

    kind = "mlp"
    role = "channel"
    regression_loss = "l2"
    torch_keys = linear_keys("fc1", "fc1") + linear_keys("fc2", "fc2")
    axes: ClassVar[Axes] = {"fc1/kernel": OUT_HIDDEN, "fc2/kernel": IN_HIDDEN}
    readout = "fc2"

    @property
    def hidden(self) -> int:
        """Width between the two layers."""
        return round(self.ratio * self.width)

    def setup(self) -> None:
        self.fc1 = self.linear(self.hidden, self.width)
        self.fc2 = self.linear(self.width, self.hidden)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(gelu(place(self.fc1(x), "batch", None, "hidden")))

    def cost(self) -> Cost:
        d, m, n = self.width, self.hidden, self.tokens
        return Cost(2 * d * m + d + m, 4 * n * d * m)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        ratio, width = op.option("ratio"), sizes.width
        if round(ratio * width) < 1:
            raise BadInput(f"{op.kind} ratio: got {ratio}, expected a hidden width of at least 1 at width {width}")

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        if super().recognise(shapes, overrides) is None:
            return None
        hidden, width = shapes["fc1.weight"]
        return {"ratio": hidden / width}

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """The weights of an MLP of the same width, those of a narrower one with its neurons split to fill the width, or
        those of a wider one's most important neurons."""
        if not isinstance(donor, MLP):
            return None
        if self.chooses(donor):
            if importance is None or np.shape(importance) != (donor.hidden,):
                got = "none" if importance is None else f"shape {np.shape(importance)}"
                raise BadInput(f"fewer neurons, and importance is {got}, expected ({donor.hidden},)")
            return keep_neurons(donor.layers(weights), importance, self.hidden)
        return donor.layers(weights) if donor.hidden == self.hidden else split_neurons(donor.layers(weights), fresh)

    def layers(self, weights: Params) -> Params:
        """Its layers among `weights` as plain dense ones: {"fc1", "fc2"}."""
        return weights

    def chooses(self, donor: Operator) -> bool:
        return isinstance(donor, MLP) and donor.hidden > self.hidden

    def start(self, donor: Operator) -> str:
        return KEPT if isinstance(donor, MLP) and not self.chooses(donor) else CHANGED


def keep_neurons(weights: Params, importance: ArrayLike, count: int) -> Params:
    """An MLP's weights with only its `count` most important neurons, in their old order; importance (m,), one per neuron."""
    chosen = np.sort(np.argsort(-np.asarray(importance), kind="stable")[:count])
    return {
        "fc1": {"kernel": weights["fc1"]["kernel"][:, chosen], "bias": weights["fc1"]["bias"][chosen]},
        "fc2": {"kernel": weights["fc2"]["kernel"][chosen], "bias": weights["fc2"]["bias"]},
    }


def split_neurons(weights: Params, fresh: Params) -> Params:
    """Weights that compute the same function in the larger hidden width of `fresh`: the first neurons get copies.

    Copies have equal input weights, so any output weights that add up to the old ones will do (Net2Net, arXiv 1511.05641,
    Section 2.2, takes equal shares). Here they are the `fresh` ones plus what is missing, in equal shares: equal output
    weights would give all copies equal gradients, and they would learn as one neuron.
    """
    old, new = (tree["fc1"]["bias"].shape[0] for tree in (weights, fresh))
    source = np.arange(new) % old
    missing = weights["fc2"]["kernel"] - jax.ops.segment_sum(fresh["fc2"]["kernel"], source, old)
    shares = missing / np.bincount(source)[:, None]  # (old, d)
    return {
        "fc1": {"kernel": weights["fc1"]["kernel"][:, source], "bias": weights["fc1"]["bias"][source]},
        "fc2": {"kernel": fresh["fc2"]["kernel"] + shares[source], "bias": weights["fc2"]["bias"]},
    }
