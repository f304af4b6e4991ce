"""Norms that come and go by degrees: none at all, and one whose strength is learned."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from graftax.errors import BadInput, did_you_mean
from graftax.ops.base import CHANGED, KEPT, Cost, Operator, Overrides, Params, Shapes, TorchKey, carried
from graftax.ops.norms import LayerNorm, Norm, RMSNorm, layer_norm, rms_norm
from graftax.spec import OpSpec, Option, Sizes, op

NORMS = {
    "rms": (rms_norm, RMSNorm, op("rms_norm", affine=True)), "layer": (layer_norm, LayerNorm, op("layer_norm", affine=True)),
}  # fmt: skip
"""What a soft norm may be: as a function, as the operator of that kind, and at its full strength."""


class NoNorm(Norm):
    """x as it is: a place for a norm that holds none."""

    kind = "no_norm"

    def __call__(self, x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32)

    def cost(self) -> Cost:
        return Cost(0, 0)

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        """Never: files without tensors for a norm have one without weights."""
        return None


class SoftNorm(Norm):
    """(1 - s) x + s g norm(x) with a learned strength s and scale g: none at s = 0, where it begins, all of it at s = 1.

    A norm can so come into a trained model that has none there, or leave one that has, from a start that computes the same:
    in the place of no norm s starts at 0, in that of a norm at 1 with its scale. Source: the idea is ReZero's (Bachlechner
    et al., arXiv 2003.04887, Eq. 1), a learned factor from 0 on what is new.

    Attributes:
        norm: "rms" or "layer".
        eps: of the norm.
    """

    norm: str = "rms"
    eps: float = 1e-6

    kind = "soft_norm"
    torch_keys = (TorchKey("scale", "weight", "same"), TorchKey("strength", "strength", "same"))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (self.width,), jnp.float32)
        strength = self.param("strength", nn.initializers.zeros, (1,), jnp.float32)
        normed = NORMS[self.norm][0](x, self.eps) * scale
        return (1 - strength) * x.astype(jnp.float32) + strength * normed

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """At full strength in place of a norm, with its scale."""
        if isinstance(donor, NoNorm) or not isinstance(donor, Norm):
            return fresh if isinstance(donor, NoNorm) else None
        return carried({**fresh, "strength": jnp.ones_like(fresh["strength"])}, weights)

    def start(self, donor: Operator) -> str:
        if isinstance(donor, NoNorm) or self == donor:
            return KEPT
        alike = isinstance(donor, NORMS[self.norm][1]) and donor.eps == self.eps
        return KEPT if alike and not (self.norm == "layer" and donor.affine) else CHANGED

    def cost(self) -> Cost:
        return Cost(self.width + 1, 0)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        super().check(op, sizes)
        if (norm := op.option("norm")) not in NORMS:
            raise BadInput(f"soft_norm norm: got {norm!r}, expected one of {tuple(NORMS)}{did_you_mean(str(norm), NORMS)}")

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        """Its options but for the kind of norm, which no tensor tells."""
        return {} if set(shapes) == {key.name for key in cls.torch_keys} else None
