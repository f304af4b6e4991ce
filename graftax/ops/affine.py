"""One linear map in place of an operator: what of it is linear, and no more."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from graftax.errors import BadInput
from graftax.ops.base import Cost, Operator, Overrides, Params, Shapes, TorchKey, linear_keys, shapes_of
from graftax.ops.low_rank import Factored
from graftax.spec import OpSpec, Option, Sizes


class Affine(Operator):
    """x W + b for every token, in place of a mixer; no tokens mix.

    The map is its own last layer, so `graftax.distill.calibrate` solves it whole: the least-squares map from the inputs of
    the replaced operator to its outputs, also under a bound on the rank (`graftax.ops.low_rank.reduced_rank`).

    Attributes:
        rank: of W, then two factors; 0 leaves it full.
    """

    rank: int = 0

    kind = "affine"
    torch_keys = (
        *linear_keys("affine", "affine"),
        TorchKey("affine/down/kernel", "affine.down.weight", "linear"),
        *linear_keys("affine/up", "affine.up"),
    )
    readout: ClassVar[str] = "affine"

    def setup(self) -> None:
        full = not self.rank
        self.affine = self.linear(self.width, self.width) if full else Factored(self.width, self.rank, self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.affine(x)

    def cost(self) -> Cost:
        d = self.width
        weights = 2 * d * self.rank if self.rank else d * d
        return Cost(weights + d, 2 * self.tokens * weights)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        if not 0 <= op.option("rank") <= sizes.width:
            raise BadInput(f"{cls.kind} rank: got {op.option('rank')}, expected 0 (full) to the width {sizes.width}")

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        down = shapes.get("affine.down.weight")
        full = {key.name for key in linear_keys("affine", "affine")}
        if set(shapes) != (full if down is None else {key.name for key in cls.torch_keys} - full):
            return None
        return {"rank": 0 if down is None else down[0]}

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """The weights of another one of the same rank."""
        shapes = jax.tree.map(jnp.shape, shapes_of(self))
        return weights if isinstance(donor, Affine) and jax.tree.map(jnp.shape, weights) == shapes else None


class AffineMLP(Affine):
    """`Affine` in place of an MLP."""

    kind = "affine_mlp"
    role = "channel"
    regression_loss = "l2"
