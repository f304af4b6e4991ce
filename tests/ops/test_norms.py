"""Norms and their gradients, held to the same formulas in float64, and what their rule is for: linear work in the depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.backbones.dit import dit_spec
from graftax.models import random_params
from graftax.models.forward import forward
from graftax.ops.norms import layer_norm, rms_norm

pytestmark = pytest.mark.full_compiler

EPS = 1e-6


def layer_norm_64(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS)


def rms_norm_64(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS)


@pytest.fixture(params=[(layer_norm, layer_norm_64), (rms_norm, rms_norm_64)], ids=["layer", "rms"])
def norm(request):
    return request.param


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    return tuple((3 * rng.standard_normal((2, 5, 16)) + 1).astype(np.float32) for _ in range(2))


def slope_64(function, x, direction, step=1e-5):
    """Central difference in float64: its own error is near step^2."""
    x, direction = x.astype(np.float64), direction.astype(np.float64)
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


def test_values(norm, inputs):
    ours, exact = norm
    np.testing.assert_allclose(ours(inputs[0]), exact(inputs[0].astype(np.float64)), rtol=1e-5, atol=1e-6)


def test_forward_mode(norm, inputs):
    ours, exact = norm
    x, direction = inputs
    _, slope = jax.jvp(ours, (x,), (direction,))
    np.testing.assert_allclose(slope, slope_64(exact, x, direction), rtol=1e-4, atol=1e-5)


def test_gradient_agrees_with_forward_mode(norm, inputs):
    """<g, J v> = <J^T g, v>: the rule is linear, so its transpose must be too."""
    ours, _ = norm
    x, v = inputs
    g = np.flip(v, 0).copy()
    (back,) = jax.vjp(ours, jnp.asarray(x))[1](g)
    np.testing.assert_allclose(np.vdot(back, v), np.vdot(g, jax.jvp(ours, (x,), (v,))[1]), rtol=1e-5)


@pytest.mark.slow
def test_half_precision_is_normalised_in_float32(norm):
    x = jnp.full((1, 4), 300.0, jnp.float16).at[0, 0].set(-300.0)  # squares overflow float16
    assert norm[0](x).dtype == jnp.float32
    assert np.isfinite(norm[0](x)).all()
    assert jax.grad(lambda x: norm[0](x).sum())(x).dtype == jnp.float16


@pytest.mark.slow
def test_an_unrolled_gradient_grows_with_the_depth_and_not_with_its_square():
    """Where gradients join the residual stream one by one, XLA:CPU repeats the stream in every weight gradient: twice the
    depth then makes 2.9 times the program."""

    def lines(depth):
        spec = dit_spec(input_size=8, patch_size=2, hidden_size=32, depth=depth, num_heads=2, num_classes=10)
        params = random_params(spec, jax.random.key(0))
        x, t, cond = jnp.ones((2, *spec.image_shape)), jnp.ones(2), {"y": jnp.zeros(2, jnp.int32)}
        grad = jax.jit(jax.grad(lambda p: forward(spec, p, x, t, cond, plan="unroll")[0].mean()))
        return len(grad.lower(params).compile().as_text().splitlines())

    assert lines(8) / lines(4) < 2.2
