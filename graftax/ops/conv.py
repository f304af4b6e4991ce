"""Depthwise convolution over tokens: `causal_conv` for short filters, `long_conv` for filters of up to all tokens.

`causal_conv` has two implementations that agree to 1e-6: `direct` adds K shifted products and suits short filters; `fft`
multiplies spectra (`jnp.fft`), costs O(n log n) whatever K is, and is the reference. `auto` takes the faster one, by the
crossover that `graftax bench conv` measures.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from graftax.errors import BadInput

CROSSOVER = 12
"""Filters of at most this many taps go to `direct`: where it stops winning on CPU, forward and backward together."""

METHODS = ("auto", "direct", "fft")


def causal_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, method: str = "auto") -> jax.Array:
    """out[i] = bias + sum_k kernel[k] * x[i - (K - 1) + k], zeros before the first token.

    x (b, n, c), kernel (K, c) with its last tap on the current token, bias (c,) -> (b, n, c). The cross-correlation of
    the Hyena operators' short filters (arXiv 2506.05340; reference: causal_conv1d). Raises `BadInput` on another method.
    """
    if method not in METHODS:
        raise BadInput(f"causal_conv method: got {method!r}, expected one of {METHODS}")
    kernel = kernel.astype(x.dtype)
    use_fft = method == "fft" or (method == "auto" and kernel.shape[0] > CROSSOVER)
    out = long_conv(x, kernel) if use_fft else _direct(x, kernel)
    return out if bias is None else out + bias.astype(x.dtype)


def long_conv(x: jax.Array, kernel: jax.Array, ahead: int = 0) -> jax.Array:
    """out[i] = sum_k kernel[k] * x[i - (K - 1 - ahead) + k], zeros outside the sequence: a product of spectra, in float32.

    x (b, n, c), kernel (K, c) with its last `ahead` taps on later tokens -> (b, n, c) in x's type. O(n log n) for K up to
    2 n - 1, where ahead = n - 1 lets every token see all others (the convolutions of Hyena, arXiv 2302.10866, Section 3).
    """
    n, taps = x.shape[1], kernel.shape[0]
    size = long_conv_size(n, taps, ahead)
    # A cross-correlation is a convolution with the reversed filter; its first `ahead` outputs lie before the first token.
    spectrum = jnp.fft.rfft(x.astype(jnp.float32), size, axis=1)  # (b, size // 2 + 1, c)
    filters = jnp.fft.rfft(kernel[::-1].astype(jnp.float32), size, axis=0)  # (size // 2 + 1, c)
    return jnp.fft.irfft(spectrum * filters[None], size, axis=1)[:, ahead : ahead + n].astype(x.dtype)


def long_conv_size(n: int, taps: int, ahead: int = 0) -> int:
    """Points of the FFTs that `long_conv` takes: the fewest, rounded up to a fast size, at which no kept output wraps."""
    return smooth_size(max(n + taps - 1 - ahead, n + ahead, taps))


def smooth_size(size: int) -> int:
    """The smallest number from `size` up without prime factors above 5: FFTs of others take up to three times longer."""
    best = 1 << (size - 1).bit_length()  # gaps grow with the numbers, so they are not searched one by one
    five = 1
    while five < best:
        three = five
        while three < best:
            twos = (-(-size // three) - 1).bit_length()
            best = min(best, three << twos)
            three *= 3
        five *= 5
    return best


def _shifted_sum(x: jax.Array, kernel: jax.Array, pad: tuple[int, int]) -> jax.Array:
    n, taps = x.shape[1], kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), pad, (0, 0)))
    terms = [padded[:, k : k + n] * kernel[k] for k in range(taps)]
    return functools.reduce(jnp.add, terms)


@jax.custom_vjp
def _direct(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _shifted_sum(x, kernel, (kernel.shape[0] - 1, 0))


def _direct_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _direct(x, kernel), (x, kernel)


def _direct_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    n, taps = x.shape[1], kernel.shape[0]
    # The input's gradient is the same sum run backwards in time.
    dx = _shifted_sum(g, kernel[::-1], (0, taps - 1))
    # The filter's gradient sums g * x over all tokens, a plain reduction per tap. Autodiff of the shifts would add up its
    # taps inside the reduction, which XLA:CPU then runs down the columns: 20 times slower at 16k tokens.
    padded = jnp.pad(x, ((0, 0), (taps - 1, 0), (0, 0)))
    rows = [jnp.sum(g * padded[:, k : k + n], axis=(0, 1), dtype=jnp.float32) for k in range(taps)]  # (c,) each
    return dx, jnp.stack(rows).astype(kernel.dtype)


_direct.defvjp(_direct_forward, _direct_backward)
