"""The short-filter Hyena operators of the grafting paper: gated causal convolutions over tokens in place of attention.

Hyena-X, Hyena-SE and Hyena-Y (arXiv 2506.05340, Section 3 and Table 3) are one operator with different filters in it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.typing import ArrayLike

from graftax.errors import BadInput
from graftax.ops.base import (
    IN_HIDDEN,
    OUT_HIDDEN,
    Cost,
    Operator,
    Overrides,
    Params,
    Shapes,
    carried,
    conv_keys,
    linear_keys,
    uniform_fan_in,
)
from graftax.ops.conv import causal_conv
from graftax.ops.placement import Axes, on_parts, parts, place
from graftax.ops.target import core_memory, kernels
from graftax.spec import OpSpec, Option, Sizes

PROJECTIONS = linear_keys("in_proj", "in_proj") + linear_keys("out_proj", "out_proj")
PROJECTION_AXES = {"in_proj/kernel": OUT_HIDDEN, "out_proj/kernel": IN_HIDDEN}


def present_only(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
    """Initialiser of a causal filter (taps, c) that passes its input on unchanged: 1 on the current token, 0 before it."""
    return jnp.zeros(shape, dtype).at[-1].set(1)


class ShortFilter(nn.Module):
    """A biased causal depthwise convolution with `taps` taps over tokens: (b, n, c) -> (b, n, c).

    It starts with PyTorch's defaults, or as the identity where `passes` is set.
    """

    channels: int
    taps: int
    passes: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        default = uniform_fan_in(self.taps)  # depthwise: the fan-in is the number of taps
        kernel_init, bias_init = (present_only, nn.initializers.zeros) if self.passes else (default, default)
        kernel = self.param("kernel", kernel_init, (self.taps, self.channels), jnp.float32)
        bias = self.param("bias", bias_init, (self.channels,), jnp.float32)
        return causal_conv(x, kernel, bias)


class Hyena(Operator):
    """y = W_out(q * inner(k * v)) + b with (q, k, v) = split(featurize(W_in u + b)): what all Hyena mixers share.

    No activation, softmax or norm. Facts of the reference (StripedHyena's operator as configured by the grafting paper):
    order 2, one head, channel order q, k, v. A subclass brings its filters, their cost and their names.
    """

    axes = PROJECTION_AXES

    def setup(self) -> None:
        self.in_proj = self.linear(3 * self.width, self.width)
        self.out_proj = self.linear(self.width, self.width)
        self.setup_filters()

    def setup_filters(self) -> None:
        """Declare the filters that `featurize` and `inner` use."""
        raise NotImplementedError

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out_proj(self.gated(x))

    def gated(self, x: jax.Array) -> jax.Array:
        """q * inner(k * v) of tokens x: (b, n, d) -> (b, n, d)."""
        features = self.featurize(place(self.in_proj(x), "batch", None, "hidden"))
        q, k, v = (place(a, "batch", None, "hidden") for a in jnp.split(features, 3, axis=-1))  # (b, n, d) each
        return q * self.inner(k * v)

    def featurize(self, u: jax.Array) -> jax.Array:
        """The convolution over q, k and v together: (b, n, 3 d) -> (b, n, 3 d)."""
        return u

    def inner(self, u: jax.Array) -> jax.Array:
        """The convolution between the two gates: (b, n, d) -> (b, n, d)."""
        return u

    def cost(self) -> Cost:
        d, n = self.width, self.tokens
        (featurizer_params, featurizer_flops), (inner_params, inner_flops) = self.featurizer_cost(), self.inner_cost()
        params = 4 * d * d + 4 * d + featurizer_params + inner_params
        return Cost(params, 2 * n * d + inner_flops, 8 * n * d * d + featurizer_flops)

    def featurizer_cost(self) -> tuple[int, int]:
        """Parameters of `featurize` and its FLOPs per image."""
        return 0, 0

    def inner_cost(self) -> tuple[int, int]:
        """Parameters of `inner` and its FLOPs per image."""
        return 0, 0

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """Projections and equal filters of another Hyena operator; filters that it lacks start afresh."""
        return carried(fresh, weights) if isinstance(donor, Hyena) else None


class _ShortHyena(Hyena):
    """The paper's three variants: with a featurizer, an inner filter, or both, of `kernel` taps each."""

    kernel: int = 4

    has_featurizer: ClassVar[bool] = True
    has_inner: ClassVar[bool] = True

    def setup_filters(self) -> None:
        if self.has_featurizer:
            self.short_filter = ShortFilter(3 * self.width, self.kernel)
        if self.has_inner:
            self.inner_filter = ShortFilter(self.width, self.kernel, passes=True)

    def featurize(self, u: jax.Array) -> jax.Array:
        return self.short_filter(u) if self.has_featurizer else u

    def inner(self, u: jax.Array) -> jax.Array:
        return self.inner_filter(u) if self.has_inner else u

    def featurizer_cost(self) -> tuple[int, int]:
        return filter_cost(3 * self.width, self.kernel, self.tokens) if self.has_featurizer else (0, 0)

    def inner_cost(self) -> tuple[int, int]:
        return filter_cost(self.width, self.kernel, self.tokens) if self.has_inner else (0, 0)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        check_kernel(op)

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        if super().recognise(shapes, overrides) is None:
            return None
        filters = [key.name for key in cls.torch_keys if key.layout == "conv"]
        return {"kernel": shapes[filters[0]][-1]}


def check_kernel(op: OpSpec) -> None:
    """Raise `BadInput` where a filter has no tap."""
    if op.option("kernel") < 1:
        raise BadInput(f"{op.kind} kernel: got {op.option('kernel')}, expected 1 or more")


def filter_cost(channels: int, taps: int, tokens: int) -> tuple[int, int]:
    """Parameters of a biased depthwise filter and its FLOPs per image."""
    return channels * (taps + 1), 2 * taps * channels * tokens


class HyenaX(_ShortHyena):
    """y = W_out(q * (k * v)) + b with (q, k, v) = split(conv_K(W_in u + b)).

    A token sees itself and the K - 1 tokens before it in raster order. On TPUs all but W_out is one kernel.
    """

    kind = "hyena_x"
    has_inner = False
    torch_keys = PROJECTIONS + conv_keys("short_filter", "short_filter")

    def gated(self, x: jax.Array) -> jax.Array:
        # Tensor parallelism splits q, k and v each by itself, where the kernel has the columns of all three.
        if self.is_initializing() or not kernels() or parts("hidden") > 1:
            return super().gated(x)
        from graftax.ops.pallas.hyena import gated_conv, hyena_takes

        if not hyena_takes(x.shape, self.kernel, core_memory()):
            return super().gated(x)
        projection, taps = (layer.variables["params"] for layer in (self.in_proj, self.short_filter))
        weights, bias = projection["kernel"], projection["bias"]
        x, cast, _ = promote_dtype(x, weights, bias, dtype=self.dtype)
        if parts("weights") > 1:
            weights = cast  # before they are gathered; by itself a device casts them on the chip
        axes: list[Axes] = [("batch", None, None), (None, None), (None,), (None, None), (None,)]
        return on_parts(gated_conv, axes)(x, weights, bias, taps["kernel"], taps["bias"])


class HyenaSE(_ShortHyena):
    """y = W_out(q * conv_K(k * v)) + b with (q, k, v) = split(conv_K(W_in u + b)).

    A token sees itself and the 2 K - 2 tokens before it in raster order. The inner filter starts as the identity, as in
    the reference, so a fresh Hyena-SE is a fresh Hyena-X.
    """

    kind = "hyena_se"
    torch_keys = PROJECTIONS + conv_keys("short_filter", "short_filter") + conv_keys("inner_filter", "inner_filter")


class HyenaY(_ShortHyena):
    """y = W_out(q * conv_K(k * v)) + b with (q, k, v) = split(W_in u + b): no featurizer.

    A token sees itself and the K - 1 tokens before it in raster order. The inner filter starts as the identity, as in the
    reference: a fresh Hyena-Y mixes no tokens.
    """

    kind = "hyena_y"
    has_featurizer = False
    torch_keys = PROJECTIONS + conv_keys("inner_filter", "inner_filter")
