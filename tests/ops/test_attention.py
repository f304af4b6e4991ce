"""Dense attention against float64, and the windowed one against dense attention under the mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.ops.attention import attend
from graftax.ops.window import banded_attention, default_block


def qkv(n, seed=0, heads=2, width=3, scale=1.0):
    rng = np.random.default_rng(seed)
    return [scale * rng.standard_normal((2, n, heads, width), np.float32) for _ in range(3)]


def near(n, window):
    token = np.arange(n)
    return abs(token[:, None] - token) <= window


def definition(q, k, v, mask=True):
    """softmax(q k^T / sqrt(width)) v in float64."""
    logits = np.einsum("bqhk,bmhk->bhqm", q.astype(np.float64), k) / np.sqrt(q.shape[-1])
    logits = np.where(mask, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqm,bmhk->bqhk", weights / weights.sum(-1, keepdims=True), v)


def reference(q, k, v, mask=True):
    """The same through `jax.nn.softmax`, for its gradient."""
    logits = jnp.einsum("bqhk,bmhk->bhqm", q, k) * q.shape[-1] ** -0.5
    return jnp.einsum("bhqm,bmhk->bqhk", jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1), v)


def gradients(f, args):
    weights = np.random.default_rng(9).standard_normal(args[0].shape, np.float32)
    return jax.jit(jax.grad(lambda args: jnp.sum(weights * f(*args))))(args)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_attend_equals_the_definition(scale):
    args = qkv(17, scale=scale)
    np.testing.assert_allclose(jax.jit(attend)(*args), definition(*args), rtol=1e-4, atol=2e-6 * scale**2)


def test_attend_gradients():
    args = qkv(9)
    mask = near(9, 2)
    for actual, expected in zip(
        gradients(lambda *a: attend(*a, mask), args), gradients(lambda *a: reference(*a, mask), args), strict=True
    ):
        np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_attend_bfloat16_keeps_the_softmax_in_float32():
    args = qkv(64)
    out = attend(*(jnp.asarray(a, jnp.bfloat16) for a in args))
    assert out.dtype == jnp.bfloat16
    assert np.abs(out.astype(jnp.float32) - definition(*args)).max() < 0.03


@pytest.mark.parametrize(
    ("n", "window", "block"),
    [
        (1, 4, None),
        (2, 1, None),
        (16, 4, None),
        (17, 4, None),
        (50, 4, 16),
        (50, 3, 7),
        (33, 20, 8),
        (12, 100, 5),
        (40, 9, None),
    ],
)
def test_bands_equal_masked_attention(n, window, block):
    args = qkv(n)
    out = jax.jit(functools.partial(banded_attention, window=window, block=block))(*args)
    assert out.shape == args[0].shape
    np.testing.assert_allclose(out, definition(*args, near(n, window)), atol=3e-6)


@pytest.mark.parametrize(("n", "window", "block"), [(1, 4, None), (21, 4, 8), (21, 30, 8)])
def test_band_gradients(n, window, block):
    args = qkv(n)
    actual = gradients(lambda *a: banded_attention(*a, window, block), args)
    expected = gradients(lambda *a: reference(*a, near(n, window)), args)
    for a, e in zip(actual, expected, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, e, atol=3e-6)


def test_bands_never_hold_all_pairs():
    """Forward and backward: no intermediate grows faster than the tokens."""

    def largest(n):
        shape = jax.ShapeDtypeStruct((1, n, 1, 4), jnp.float32)
        loss = lambda q, k, v: banded_attention(q, k, v, 4).sum()  # noqa: E731
        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(shape, shape, shape)
        return max(np.prod(var.aval.shape) for eqn in jaxpr.eqns for var in eqn.outvars)

    assert largest(8192) <= 2.1 * largest(4096) < 4096 * 128


def test_a_block_holds_the_window():
    assert default_block(4) >= 16
    assert default_block(200) >= 200
