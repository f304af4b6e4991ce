"""The causal convolution: both implementations against loops in float64, their gradients against autodiff of the sum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.ops.conv import CROSSOVER, causal_conv, smooth_size

SIZES = [(1, 1), (1, 4), (2, 7), (16, 4), (33, 33), (40, 5)]
"""(tokens, taps)"""


def inputs(n, taps, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, n, channels), np.float32), rng.standard_normal((taps, channels), np.float32)


def loops(x, kernel):
    """The definition, in float64."""
    out = np.zeros(x.shape)
    taps = len(kernel)
    for i in range(x.shape[1]):
        for k in range(taps):
            j = i - (taps - 1) + k
            if j >= 0:
                out[:, i] += kernel[k].astype(np.float64) * x[:, j]
    return out


def naive(x, kernel):
    """The definition as shifted products, left to autodiff."""
    n, taps = x.shape[1], kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), (taps - 1, 0), (0, 0)))
    return sum(padded[:, k : k + n] * kernel[k] for k in range(taps))


@functools.cache
def compiled(method):
    return jax.jit(functools.partial(causal_conv, method=method))


def relative(actual, expected):
    return float(np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("method", ["direct", "fft"])
@pytest.mark.parametrize(("n", "taps"), SIZES)
def test_equals_the_definition(n, taps, method):
    x, kernel = inputs(n, taps)
    assert relative(compiled(method)(x, kernel), loops(x, kernel)) < 1e-6


@pytest.mark.parametrize("method", ["direct", "fft"])
@pytest.mark.parametrize(("n", "taps"), [(1, 4), (16, 4), (40, 5)])
def test_gradients_equal_autodiff_of_the_sum(n, taps, method):
    x, kernel = inputs(n, taps)
    g = inputs(n, taps, seed=1)[0]
    back = jax.jit(lambda conv, x, kernel, g: jax.vjp(conv, x, kernel)[1](g), static_argnums=0)
    expected, actual = (back(conv, x, kernel, g) for conv in (naive, compiled(method)))
    for a, e in zip(actual, expected, strict=True):
        assert relative(a, np.asarray(e)) < 1e-6


def test_gradient_equals_finite_differences():
    x, kernel = inputs(6, 3)
    g = inputs(6, 3, seed=1)[0]
    dx, dkernel = jax.vjp(lambda x, kernel: causal_conv(x, kernel, method="direct"), x, kernel)[1](g)
    for value, gradient, of in ((x, dx, lambda a: loops(a, kernel)), (kernel, dkernel, lambda a: loops(x, a))):
        for index in ((0,) * value.ndim, (1,) * value.ndim):
            step = np.zeros(value.shape)
            step[index] = 0.5  # the map is linear in each argument, so any step will do
            slope = np.sum(g * (of(value + step) - of(value - step)))
            assert float(gradient[index]) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("method", ["direct", "fft"])
def test_bias_and_vmap(method):
    x, kernel = inputs(16, 4)
    bias = jnp.arange(3.0)
    alone = causal_conv(x, kernel, bias, method)
    np.testing.assert_allclose(alone, loops(x, kernel) + np.arange(3.0), atol=1e-5)
    mapped = jax.vmap(lambda x, kernel: causal_conv(x, kernel, bias, method))(x[None], kernel[None])[0]
    np.testing.assert_allclose(mapped, alone, atol=1e-6)


def test_the_past_alone_counts():
    x, kernel = inputs(16, 4)
    later = x.copy()
    later[:, 9:] += 1
    before, after = (np.asarray(causal_conv(a, kernel, method="direct")) for a in (x, later))
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert (before[:, 9] != after[:, 9]).all()


@pytest.mark.parametrize(("taps", "fft"), [(CROSSOVER, False), (CROSSOVER + 1, True)])
def test_auto_takes_the_crossover(taps, fft):
    x, kernel = inputs(8, taps)
    assert ("fft" in str(jax.make_jaxpr(causal_conv)(x, kernel))) == fft


@pytest.mark.slow
@pytest.mark.parametrize("method", ["direct", "fft"])
def test_bfloat16_stays_near(method):
    x, kernel = inputs(40, 5)
    out = causal_conv(jnp.asarray(x, jnp.bfloat16), kernel, method=method)
    assert out.dtype == jnp.bfloat16
    assert relative(out.astype(jnp.float32), loops(x, kernel)) < 0.03


def test_unknown_method():
    with pytest.raises(BadInput, match="'winograd'"):
        causal_conv(*inputs(4, 2), method="winograd")


def test_smooth_sizes():
    assert [smooth_size(n) for n in (1, 7, 16, 17, 263, 16387)] == [1, 8, 16, 18, 270, 16875]
    assert smooth_size(125_001) == 128_000  # 2,999 on: more than calls can be nested
