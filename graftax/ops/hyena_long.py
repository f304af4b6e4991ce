"""Hyena with implicit filters as long as the sequence (Poli et al., arXiv 2302.10866)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from graftax.errors import BadInput
from graftax.ops.base import Overrides, Shapes, TorchKey, conv_keys, linear_keys, uniform_fan_in
from graftax.ops.conv import long_conv, long_conv_size
from graftax.ops.hyena import PROJECTIONS, Hyena, ShortFilter, filter_cost
from graftax.spec import OpSpec, Option, Sizes

BANDS = 8
FEATURES = 1 + 2 * BANDS
"""Positional features of a lag t: t itself, then cosines and sines of 2 pi f t for f = 1 .. BANDS."""

SINE_FREQUENCY = 10.0
"""Factor inside the network's sines; without it, so small a network gives smooth filters only (the reference's default)."""

DECAY_TO = 0.01
DECAY_WITHIN = (1.5, 0.3)
"""The window of the first channel falls to DECAY_TO within 1.5 sequence lengths, that of the last within 0.3."""


class LongFilter(nn.Module):
    """A depthwise convolution with an implicit filter, plus `skip` times the input: (b, n, c) -> (b, n, c).

    The filter is a function of the lag, h(t) = window(t) * network(features(t)) with t in [0, 1] over the sequence (eq. 7
    of the paper); the network has two hidden layers of `hidden` sines. Windows decay exponentially, at a rate per channel.
    Two choices are graftax's own: windows sum to 1, so that the output's scale does not grow with the sequence, and `skip`
    starts at 1, so that a fresh filter is near the identity, as in the family's short inner filters. With `bidirectional`
    there is a second filter, for the tokens after the current one.
    """

    channels: int
    hidden: int
    bidirectional: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n = x.shape[1]
        filters = self._filters(n)  # (n, directions, c), lag 0 first
        kernel, ahead = filters[::-1, 0], 0
        if self.bidirectional:
            kernel, ahead = jnp.concatenate([kernel, filters[1:, 1]]), n - 1  # (2 n - 1, c)
        skip = self.param("skip", nn.initializers.ones, (self.channels,), jnp.float32)
        return long_conv(x, kernel, ahead) + x * skip.astype(x.dtype)

    def _filters(self, lags: int) -> jax.Array:
        """All filters, (lags, directions, c) float32."""
        t = np.arange(lags)[:, None] / max(lags - 1, 1)  # (lags, 1); constants, in float64 until they are used
        angles = 2 * math.pi * t * np.arange(1, BANDS + 1)  # (lags, BANDS)
        h = jnp.asarray(np.concatenate([t, np.cos(angles), np.sin(angles)], axis=-1), jnp.float32)  # (lags, FEATURES)
        h = jnp.sin(SINE_FREQUENCY * self._linear("fc1", h, self.hidden))
        h = jnp.sin(SINE_FREQUENCY * self._linear("fc2", h, self.hidden))
        h = self._linear("fc3", h, (1 + self.bidirectional) * self.channels, use_bias=False)
        slow, fast = (-math.log(DECAY_TO) / within for within in DECAY_WITHIN)
        window = jnp.exp(-jnp.asarray(t, jnp.float32) * jnp.linspace(slow, fast, self.channels))  # (lags, c)
        return h.reshape(lags, -1, self.channels) * (window / window.sum(0))[:, None]

    def _linear(self, name: str, h: jax.Array, features: int, use_bias: bool = True) -> jax.Array:
        init = uniform_fan_in(h.shape[-1])
        return nn.Dense(features, use_bias=use_bias, kernel_init=init, bias_init=init, name=name)(h)


class HyenaLong(Hyena):
    """y = W_out(q * (h * (k * v) + D k * v)) + b with (q, k, v) = split(conv_K(W_in u + b)), h as long as the sequence.

    Hyena of order 2 in O(n log n): Hyena-X with an implicit long convolution (`LongFilter`, hidden width `filter_width`)
    between its gates. A token sees all tokens before it, with `bidirectional` also all after it, as suits images.
    The parameters do not depend on the number of tokens.
    """

    kernel: int = 4
    filter_width: int = 64
    bidirectional: bool = False

    kind = "hyena_long"
    torch_keys = (
        *PROJECTIONS,
        *conv_keys("short_filter", "short_filter"),
        # Names of the reference where it has the same; its learned positions and frequencies have no counterpart.
        *linear_keys("long_filter/fc1", "filter_fn.implicit_filter.0"),
        *linear_keys("long_filter/fc2", "filter_fn.implicit_filter.2"),
        TorchKey("long_filter/fc3/kernel", "filter_fn.implicit_filter.4.weight", "linear"),
        TorchKey("long_filter/skip", "filter_fn.bias", "same"),
    )

    def setup_filters(self) -> None:
        self.short_filter = ShortFilter(3 * self.width, self.kernel)
        self.long_filter = LongFilter(self.width, self.filter_width, self.bidirectional)

    def featurize(self, u: jax.Array) -> jax.Array:
        return self.short_filter(u)

    def inner(self, u: jax.Array) -> jax.Array:
        return self.long_filter(u)

    def featurizer_cost(self) -> tuple[int, int]:
        return filter_cost(3 * self.width, self.kernel, self.tokens)

    def inner_cost(self) -> tuple[int, int]:
        """The filter's network and windows, three real FFTs of s points at 2.5 s log2 s, their product, and the skip."""
        d, n, m, out = self.width, self.tokens, self.filter_width, (1 + self.bidirectional) * self.width
        weights = FEATURES * m + m * m + m * out
        size = long_conv_size(n, n * (1 + self.bidirectional) - self.bidirectional, (n - 1) * self.bidirectional)
        transforms = d * round(3 * 2.5 * size * math.log2(size) + 6 * (size // 2 + 1))
        return weights + 2 * m + d, 2 * n * weights + n * out + transforms + 2 * n * d

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        for name in ("kernel", "filter_width"):
            if op.option(name) < 1:
                raise BadInput(f"hyena_long {name}: got {op.option(name)}, expected 1 or more")

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        if super().recognise(shapes, overrides) is None:
            return None
        return {
            "kernel": shapes["short_filter.weight"][-1],
            "filter_width": shapes["filter_fn.implicit_filter.0.weight"][0],
            "bidirectional": shapes["filter_fn.implicit_filter.4.weight"][0] == 2 * shapes["out_proj.weight"][0],
        }
