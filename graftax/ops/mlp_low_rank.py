"""An MLP whose two layers are products of narrow ones."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
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
    TorchKey,
    linear_keys,
)
from graftax.ops.low_rank import Factored, reduced_rank
from graftax.ops.mlp import MLP
from graftax.spec import OpSpec, Option, Sizes


class MLPLowRank(MLP):
    """`MLP` with kernels W = D U of this rank (truncated singular values, Denton et al., arXiv 1404.0736, Section 3).

    Below a rank of m d / (m + d), 0.8 d at ratio 4, it has fewer parameters and products than the MLP. Taken over from one
    of the same hidden width, each kernel is the nearest one of this rank (Eckart and Young 1936), the biases stay, and
    `graftax.distill.calibrate` fits the second layer to data.

    Attributes:
        rank: width between the two factors of a layer, at most the width.
    """

    rank: int = 128

    kind = "mlp_low_rank"
    torch_keys = (
        TorchKey("fc1/down/kernel", "fc1.down.weight", "linear"),
        *linear_keys("fc1/up", "fc1.up"),
        TorchKey("fc2/down/kernel", "fc2.down.weight", "linear"),
        *linear_keys("fc2/up", "fc2.up"),
    )
    axes: ClassVar[Axes] = {"fc1/up/kernel": OUT_HIDDEN, "fc2/down/kernel": IN_HIDDEN}

    def setup(self) -> None:
        self.fc1 = Factored(self.hidden, self.rank, self.dtype)
        self.fc2 = Factored(self.width, self.rank, self.dtype)

    def cost(self) -> Cost:
        d, m, n = self.width, self.hidden, self.tokens
        weights = 2 * self.rank * (d + m)
        return Cost(weights + d + m, 2 * n * weights)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        super().check(op, sizes)
        most = min(sizes.width, round(op.option("ratio") * sizes.width))
        if not 1 <= op.option("rank") <= most:
            raise BadInput(
                f"{cls.kind} rank: got {op.option('rank')}, expected 1 to {most}, the narrower side of its kernels"
            )

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        if set(shapes) != {key.name for key in cls.torch_keys}:
            return None
        (rank, width), (hidden, _) = shapes["fc1.down.weight"], shapes["fc1.up.weight"]
        return {"ratio": hidden / width, "rank": rank}

    def layers(self, weights: Params) -> Params:
        return {
            name: {"kernel": layer["down"]["kernel"] @ layer["up"]["kernel"], "bias": layer["up"]["bias"]}
            for name, layer in weights.items()
        }

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """The nearest kernels of this rank to those of an MLP of the same hidden width."""
        if not isinstance(donor, MLP) or donor.hidden != self.hidden:
            return None
        if isinstance(donor, MLPLowRank) and donor.rank == self.rank:
            return weights
        return {name: self._nearest(layer) for name, layer in donor.layers(weights).items()}

    def chooses(self, donor: Operator) -> bool:
        return False

    def start(self, donor: Operator) -> str:
        if not isinstance(donor, MLP) or donor.hidden != self.hidden:
            return CHANGED
        return KEPT if isinstance(donor, MLPLowRank) and donor.rank <= self.rank else FITTED

    def _nearest(self, layer: Params) -> Params:
        kernel, bias = (np.asarray(layer[name], np.float64) for name in ("kernel", "bias"))
        # Of inputs that are as large in all directions, the best map of the rank is the nearest kernel.
        down, up, bias = reduced_rank(kernel, bias, np.zeros(len(kernel)), np.eye(len(kernel)), self.rank)
        down, up, bias = (jnp.asarray(a, jnp.float32) for a in (down, up, bias))
        return {"down": {"kernel": down}, "up": {"kernel": up, "bias": bias}}
