"""Hyena-X: gated short convolutions over tokens in place of attention (arXiv 2506.05340, Section 3)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from graftax.errors import BadInput
from graftax.ops.base import Cost, Operator, conv_keys, linear_keys, uniform_fan_in
from graftax.ops.conv import causal_conv
from graftax.spec import OpSpec, Option


class ShortFilter(nn.Module):
    """A biased causal depthwise convolution with `taps` taps over tokens: (b, n, c) -> (b, n, c)."""

    channels: int
    taps: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = uniform_fan_in(self.taps)  # depthwise: the fan-in is the number of taps
        kernel = self.param("kernel", init, (self.taps, self.channels), jnp.float32)
        bias = self.param("bias", init, (self.channels,), jnp.float32)
        return causal_conv(x, kernel, bias)


class HyenaX(Operator):
    """y = W_out(q * (k * v)) + b with (q, k, v) = split(conv_K(W_in u + b)).

    No activation, softmax or norm; a token sees itself and the K - 1 tokens before it in raster order. Facts of the
    reference (StripedHyena's operator as configured by the grafting paper): order 2, one head, channel order q, k, v.
    """

    kernel: int = 4

    kind = "hyena_x"
    torch_keys = (
        linear_keys("in_proj", "in_proj") + conv_keys("short_filter", "short_filter") + linear_keys("out_proj", "out_proj")
    )

    def setup(self) -> None:
        self.in_proj = self.linear(3 * self.width, self.width)
        self.short_filter = ShortFilter(3 * self.width, self.kernel)
        self.out_proj = self.linear(self.width, self.width)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = jnp.split(self.short_filter(self.in_proj(x)), 3, axis=-1)  # (b, n, d) each
        return self.out_proj(q * (k * v))

    def cost(self) -> Cost:
        d, n, taps = self.width, self.tokens, self.kernel
        params = 4 * d * d + 4 * d + 3 * d * (taps + 1)
        return Cost(params, 2 * n * d, 8 * n * d * d + 6 * taps * n * d)

    @classmethod
    def check(cls, op: OpSpec, width: int, tokens: int, num_heads: int) -> None:
        if op.option("kernel") < 1:
            raise BadInput(f"hyena_x kernel: got {op.option('kernel')}, expected 1 or more")

    @classmethod
    def recognise(cls, shapes, overrides) -> dict[str, Option] | None:
        if super().recognise(shapes, overrides) is None:
            return None
        return {"kernel": shapes["short_filter.weight"][-1]}
