"""Winograd's convolutions against XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.nets.winograd import DOUBLED, PLAIN, conv3x3, convolved, doubled_conv3x3, filtered, suits

KEY = jax.random.key(0)


def arrays(shape, d=64, dtype=jnp.float32):
    x, kernel = (jax.random.normal(jax.random.fold_in(KEY, i), s) for i, s in enumerate((shape, (3, 3, shape[-1], d))))
    return x.astype(dtype), kernel.astype(dtype)


@pytest.mark.parametrize("way", [PLAIN, DOUBLED], ids=["plain", "doubled"])
@pytest.mark.parametrize("shape", [(1, 2, 2, 3), (2, 6, 4, 5)])
def test_it_is_the_convolution(way, shape):
    x, kernel = arrays(shape, 4)
    expected = convolved(way, x, kernel)
    # Sums and differences of float32 numbers, some steps more than in the convolution itself.
    np.testing.assert_allclose(filtered(way, x, kernel), expected, atol=2e-6 * float(jnp.abs(expected).max()))


def test_doubling_is_doubling():
    x, kernel = arrays((2, 3, 5, 3), 4)
    expected = convolved(PLAIN, x.repeat(2, 1).repeat(2, 2), kernel)
    for found in (doubled_conv3x3(x, kernel), filtered(DOUBLED, x, kernel)):
        np.testing.assert_allclose(found, expected, atol=2e-6 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("way", [PLAIN, DOUBLED], ids=["plain", "doubled"])
def test_its_gradients_are_those_of_the_convolution(way):
    x, kernel = arrays((2, 4, 4, 3), 5)
    slopes = [
        jax.grad(lambda *both, f=f: jnp.sin(f(way, *both)).sum(), (0, 1))(x, kernel) for f in (filtered, convolved)
    ]  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max())), *slopes)


@pytest.mark.parametrize(
    ("way", "function", "products", "convolutions"),
    [(PLAIN, conv3x3, 16, 1), (DOUBLED, doubled_conv3x3, 9, 4)],
    ids=["plain", "doubled"],
)
def test_it_is_taken_on_a_cpu_where_it_suits(way, function, products, convolutions):
    x, kernel = arrays((1, 32, 32, 64))
    assert suits(way, x, kernel)
    lowered = jax.jit(function).lower(x, kernel).as_text()
    assert "stablehlo.convolution" not in lowered
    assert lowered.count("stablehlo.dot_general") == products
    elsewhere = jax.jit(function).trace(x, kernel).lower(lowering_platforms=("tpu",)).as_text()
    assert elsewhere.count("stablehlo.convolution") == convolutions
    assert "stablehlo.dot_general" not in elsewhere
    expected = convolved(way, x, kernel)
    np.testing.assert_allclose(function(x, kernel), expected, atol=2e-6 * float(jnp.abs(expected).max()))
    slope = jax.jit(jax.grad(lambda x: function(x, kernel).sum()))(x)
    np.testing.assert_allclose(slope, jax.grad(lambda x: convolved(way, x, kernel).sum())(x), atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "d", "dtype"),
    [
        ((1, 33, 32, 64), 64, jnp.float32),
        ((1, 32, 32, 3), 64, jnp.float32),
        ((1, 32, 32, 64), 3, jnp.float32),
        ((1, 16, 16, 64), 64, jnp.float32),
        ((1, 32, 32, 64), 64, jnp.bfloat16),
        ((9, 256, 256, 128), 64, jnp.float32),
    ],
)
def test_elsewhere_the_convolution_is_itself(shape, d, dtype):
    x, kernel = (jax.ShapeDtypeStruct(s, dtype) for s in (shape, (3, 3, shape[-1], d)))
    assert not suits(PLAIN, x, kernel)


def test_what_an_image_is_doubled_to_counts_for_memory():
    kernel = jax.ShapeDtypeStruct((3, 3, 128, 128), jnp.float32)
    for side, fits in ((256, True), (258, False)):
        assert suits(DOUBLED, jax.ShapeDtypeStruct((1, side, side, 128), jnp.float32), kernel) is fits
