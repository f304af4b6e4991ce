"""A gated channel mixer: SwiGLU."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from graftax.errors import BadInput
from graftax.ops.base import (
    CHANGED,
    FITTED,
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
from graftax.ops.mlp import MLP
from graftax.ops.placement import place
from graftax.spec import OpSpec, Option, Sizes

LAYERS = ("w1", "w2", "out")
"""Of what is gated by its SiLU, of what it is multiplied with, and the last one."""


STEEP = 1.702
"""gelu(z) is about z sigmoid(1.702 z) = silu(1.702 z) / 1.702 (Hendrycks and Gimpel, arXiv 1606.08415, Section 2), within
0.021 everywhere."""


class SwiGLU(Operator):
    """out(silu(w1 x) * w2 x), hidden width round(ratio * d) (Shazeer, arXiv 2002.05202, Eq. 6; AuraFlow's channel mixer).

    Attributes:
        ratio: hidden width over d; at 8 / 3 there are as many parameters as in an MLP of ratio 4.
        bias: whether the three layers have one.
    """

    ratio: float = 8 / 3
    bias: bool = False

    kind = "swiglu"
    role = "channel"
    regression_loss = "l2"
    readout = "out"
    torch_keys = tuple(key for layer in LAYERS for key in linear_keys(layer, layer))
    axes: ClassVar[Axes] = {"w1/kernel": OUT_HIDDEN, "w2/kernel": OUT_HIDDEN, "out/kernel": IN_HIDDEN}

    @property
    def hidden(self) -> int:
        """Width between the layers."""
        return round(self.ratio * self.width)

    def setup(self) -> None:
        self.w1 = self.linear(self.hidden, self.width, self.bias)
        self.w2 = self.linear(self.hidden, self.width, self.bias)
        self.out = self.linear(self.width, self.hidden, self.bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, value = (place(layer(x), "batch", None, "hidden") for layer in (self.w1, self.w2))  # (b, n, m) each
        return self.out(nn.silu(gate) * value)

    def cost(self) -> Cost:
        d, m, n = self.width, self.hidden, self.tokens
        return Cost(3 * d * m + (2 * m + d) * self.bias, 6 * n * d * m + n * m)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        if round(op.option("ratio") * sizes.width) < 1:
            got = op.option("ratio")
            raise BadInput(f"swiglu ratio: got {got}, expected a hidden width of at least 1 at width {sizes.width}")

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        kernels = {f"{layer}.weight" for layer in LAYERS}
        biases = {f"{layer}.bias" for layer in LAYERS}
        if set(shapes) not in (kernels, kernels | biases):
            return None
        hidden, width = shapes["w1.weight"]
        return {"ratio": hidden / width, "bias": len(shapes) > len(kernels)}

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """The weights of another one of the same hidden width; biases that it has none of are zero, those that there is no
        place for have nowhere to go.

        Of an MLP, where there are biases, its neurons (as many as `MLP.transplant` keeps), with the gate w2 x held at
        1 / `STEEP` by its bias: the gate's kernel starts at zero and learns.
        """
        if isinstance(donor, MLP):
            return self._of_mlp(fresh, donor, weights, importance) if self.bias else None
        if not isinstance(donor, SwiGLU) or donor.hidden != self.hidden or donor.bias > self.bias:
            return None
        return {name: {**jax.tree.map(jnp.zeros_like, layer), **weights[name]} for name, layer in fresh.items()}

    def _of_mlp(self, fresh: Params, donor: MLP, weights: Params, importance: ArrayLike | None) -> Params | None:
        neurons = self._mlp.transplant({"fc1": fresh["w1"], "fc2": fresh["out"]}, donor, weights, importance)
        if neurons is None:
            return None
        gate = {"kernel": jnp.zeros_like(fresh["w2"]["kernel"]), "bias": jnp.full_like(fresh["w2"]["bias"], 1 / STEEP)}
        return {"w1": jax.tree.map(lambda leaf: STEEP * leaf, neurons["fc1"]), "w2": gate, "out": neurons["fc2"]}

    @property
    def _mlp(self) -> MLP:
        """An MLP of as many neurons."""
        return MLP(self.sizes, ratio=self.ratio, parent=None)

    def chooses(self, donor: Operator) -> bool:
        return self._mlp.chooses(donor)

    def start(self, donor: Operator) -> str:
        if isinstance(donor, SwiGLU) and donor.hidden == self.hidden:
            return KEPT
        return FITTED if isinstance(donor, MLP) and not self.chooses(donor) else CHANGED
