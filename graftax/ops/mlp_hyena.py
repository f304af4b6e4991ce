"""MLP Hyena-X: gates and a short convolution along the feature axis in place of the GELU MLP (arXiv 2506.05340, Table 3)."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from graftax.errors import BadInput
from graftax.ops.base import Cost, Operator, Overrides, Params, Shapes, conv_keys
from graftax.ops.hyena import PROJECTION_AXES, PROJECTIONS, ShortFilter
from graftax.spec import OpSpec, Option, Sizes


class MLPHyenaX(Operator):
    """y = W_out(q * (k * v)) + b with (q, k, v) = split(conv_K(W_in u + b)), exactly as the grafting paper's code has it.

    Hidden width m = round(ratio * d). The convolution's channels are the token positions, one filter each, and it slides
    along all 3 m features before they are split. No tokens mix. Two consequences: the operator serves only as many tokens
    as the model has, and `__call__` raises `BadInput` on others; and the first K - 1 features of k see the last ones of q,
    those of v the last ones of k (`MLPHyenaXSplit` is without that).
    """

    ratio: float = 2.0
    kernel: int = 4

    kind = "mlp_hyena_x"
    role = "channel"
    axes = PROJECTION_AXES
    regression_loss = "l2"
    torch_keys = PROJECTIONS + conv_keys("short_filter", "short_filter")

    parts: ClassVar[int] = 1
    """Pieces of the feature axis that are convolved each by itself."""

    @property
    def hidden(self) -> int:
        """Width of q, k and v."""
        return round(self.ratio * self.width)

    def setup(self) -> None:
        self.in_proj = self.linear(3 * self.hidden, self.width)
        self.short_filter = ShortFilter(self.tokens, self.kernel)
        self.out_proj = self.linear(self.width, self.hidden)

    def __call__(self, x: jax.Array) -> jax.Array:
        if x.shape[1] != self.tokens:
            raise BadInput(f"{self.kind}: got {x.shape[1]} tokens, expected {self.tokens}: it has one filter per token")
        q, k, v = jnp.split(self.convolved(self.in_proj(x)), 3, axis=-1)  # (b, n, m) each
        return self.out_proj(q * (k * v))

    @property
    def needs_grid(self) -> bool:
        return True

    def convolved(self, u: jax.Array) -> jax.Array:
        """The convolution along features, each token with its own filter: (b, n, 3 m) -> (b, n, 3 m)."""
        b, n, features = u.shape
        u = u.reshape(b, n, self.parts, -1).transpose(0, 2, 3, 1)  # (b, parts, 3 m / parts, n)
        u = self.short_filter(u.reshape(b * self.parts, -1, n))  # tokens are its channels
        return u.reshape(b, self.parts, -1, n).transpose(0, 3, 1, 2).reshape(b, n, features)

    def cost(self) -> Cost:
        d, m, n = self.width, self.hidden, self.tokens
        # The convolution's 6 K n m FLOPs are left out: the paper's Table 4 prints +0.02 %, with them it were +0.28 %.
        return Cost(4 * d * m + 3 * m + d + n * (self.kernel + 1), 8 * n * d * m + 2 * n * m)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        ratio, width = op.option("ratio"), sizes.width
        if round(ratio * width) < 1:
            raise BadInput(f"{cls.kind} ratio: got {ratio}, expected a hidden width of at least 1 at width {width}")
        if op.option("kernel") < 1:
            raise BadInput(f"{cls.kind} kernel: got {op.option('kernel')}, expected 1 or more")

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        if super().recognise(shapes, overrides) is None:
            return None
        width, hidden = shapes["out_proj.weight"]
        taps = next(shapes[key.name][-1] for key in cls.torch_keys if key.layout == "conv")
        return {"ratio": hidden / width, "kernel": taps}

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        if not isinstance(donor, MLPHyenaX) or (donor.hidden, donor.kernel) != (self.hidden, self.kernel):
            return None
        return weights


class MLPHyenaXSplit(MLPHyenaX):
    """MLP Hyena-X split before its convolution, so that no feature of one of q, k, v leaks into the next.

    A token's filter runs along its q, k and v separately, each with zeros before its first feature; parameters and cost
    are those of `MLPHyenaX`. There is still one filter per token position: a filter shared by all tokens would be a
    linear map of the features, which W_in can express without it. No published checkpoint has this operator; its filter
    has a name of its own in files, so that the two are told apart.
    """

    kind = "mlp_hyena_x_split"
    parts = 3
    torch_keys = PROJECTIONS + conv_keys("short_filter", "split_filter")
