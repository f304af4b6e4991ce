"""DiCo's mixer: a depthwise convolution over the image grid, and gates on channels that see the whole image."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from graftax.ops.base import (
    OUT_HIDDEN,
    Axes,
    Cost,
    Operator,
    Overrides,
    Params,
    Shapes,
    TorchKey,
    carried,
    check_grid,
    linear_keys,
)
from graftax.ops.hyena import PROJECTION_AXES, PROJECTIONS, filter_cost
from graftax.ops.hyena_2d import GridFilter, check_grid_filter
from graftax.ops.placement import place
from graftax.spec import OpSpec, Option, Sizes


class DiCo(Operator):
    """y = W_out(g * sigmoid(W_c mean(g))) with g = gelu(conv_KxK(W_in x)); every layer has a bias, the mean is over tokens.

    The part of a DiCo block that stands where a DiT has attention (arXiv 2505.11196: compact channel attention on a
    depthwise convolution; reference: shallowdream204/DiCo, DiCoBlock). GELU is the exact one, with the error function. No
    published DiT holds it: its names in PyTorch files are our own. Of attention it takes nothing over;
    `graftax.distill.calibrate` fits W_out.

    Attributes:
        kernel: side K of the convolution's filter, odd.
    """

    kernel: int = 3

    kind = "dico"
    torch_keys = (
        *PROJECTIONS,
        TorchKey("grid_filter/kernel", "depthwise.weight", "patch"),  # (d, 1, K, K) -> (K, K, 1, d)
        TorchKey("grid_filter/bias", "depthwise.bias", "same"),
        *linear_keys("attention", "channel_attention"),
    )
    axes: ClassVar[Axes] = {**PROJECTION_AXES, "attention/kernel": OUT_HIDDEN}

    @property
    def needs_grid(self) -> bool:
        return True

    def setup(self) -> None:
        self.in_proj = self.linear(self.width, self.width)
        self.grid_filter = GridFilter(self.width, self.kernel, self.sizes.grid)
        self.attention = self.linear(self.width, self.width)
        self.out_proj = self.linear(self.width, self.width)

    def __call__(self, x: jax.Array) -> jax.Array:
        u = place(self.in_proj(x), "batch", None, "hidden")
        g = nn.gelu(self.grid_filter(u), approximate=False)  # (b, n, d)
        mean = g.mean(1, keepdims=True, dtype=jnp.float32).astype(g.dtype)  # (b, 1, d)
        gates = nn.sigmoid(self.attention(mean))
        return self.out_proj(g * place(gates, "batch", None, "hidden"))

    def cost(self) -> Cost:
        d, n = self.width, self.tokens
        params, flops = filter_cost(d, self.kernel**2, n)
        # The gates' layer, once for an image, the mean and the products with the gates.
        return Cost(3 * (d * d + d) + params, 2 * d * d + 2 * n * d, 4 * n * d * d + flops)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        check_grid_filter(op, sizes)
        check_grid(op.kind, sizes)

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        return None if super().recognise(shapes, overrides) is None else {"kernel": shapes["depthwise.weight"][-1]}

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """The weights of another one, its filter where it has the same size."""
        return carried(fresh, weights) if isinstance(donor, DiCo) else None
