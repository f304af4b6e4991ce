"""The state-space scan: both forms against the definition in float64, their gradients, and what rounding does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.ops.ssd import prefix_sums, ssd_chunked, ssd_sequential

CHUNKS = (1, 16, 64, 512)
HEADS, HEAD_DIM, STATE = 4, 3, 5
STEPS = {"usual": (1e-3, 0.1), "large": (0.1, 10.0), "mixed": (1e-4, 10.0)}
"""Ranges of dt: Mamba-2's at initialisation, and beyond."""


def inputs(n, steps="usual", b=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((b, n, HEADS, HEAD_DIM), np.float32)
    dt = np.exp(rng.uniform(*np.log(STEPS[steps]), (b, n, HEADS))).astype(np.float32)
    A = -rng.uniform(1, 16, HEADS).astype(np.float32)
    return x, dt, A, *rng.standard_normal((2, b, n, STATE), np.float32)


def definition(x, dt, A, B, C):
    """The recurrence as it is written, in float64."""
    x, dt, A, B, C = (np.asarray(a, np.float64) for a in (x, dt, A, B, C))
    state, y = np.zeros((x.shape[0], HEADS, HEAD_DIM, STATE)), np.zeros(x.shape)
    for t in range(x.shape[1]):
        update = dt[:, t, :, None, None] * x[:, t, :, :, None] * B[:, t, None, None, :]
        state = np.exp(A * dt[:, t])[..., None, None] * state + update
        y[:, t] = np.einsum("bhks,bs->bhk", state, C[:, t])
    return y


def relative(actual, expected):
    return float(np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max())


@functools.cache
def chunked(chunk=None):
    return jax.jit(functools.partial(ssd_chunked, chunk=chunk))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("n", [1, 7, 70])
def test_sequential_equals_the_definition(n, steps):
    assert relative(jax.jit(ssd_sequential)(*inputs(n, steps)), definition(*inputs(n, steps))) < 1e-6


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("n", [1, 100, 512])
def test_chunked_equals_the_definition(n, chunk, steps):
    """Also where chunks do not divide n, and where one chunk has decays from 1 to nothing."""
    assert relative(chunked(chunk)(*inputs(n, steps)), definition(*inputs(n, steps))) < 2e-6


def test_default_chunk():
    assert relative(chunked()(*inputs(77)), definition(*inputs(77))) < 2e-6


def test_decays_keep_their_accuracy():
    """Sums over a few tokens, as differences of sums over 256: plain float32 loses three digits."""
    rng = np.random.default_rng(0)
    a = -np.exp(rng.uniform(np.log(1e-3), np.log(120), (8, 512))).astype(np.float32)
    exact = np.diff(np.cumsum(a.astype(np.float64), axis=-1))
    ours = sum(np.diff(np.asarray(part)) for part in jax.jit(prefix_sums)(a))
    plain = np.diff(np.cumsum(a, axis=-1, dtype=np.float32))
    assert np.abs(ours - exact).max() < 2e-7 * 120
    assert np.abs(np.exp(ours) - np.exp(exact)).max() < 3e-7
    assert np.abs(np.exp(plain) - np.exp(exact)).max() > 1e-4


def test_no_decay_is_too_fast():
    sums = jax.jit(prefix_sums)(np.array([-1e30, -0.5, -1e9, -3.0], np.float32))
    np.testing.assert_array_equal(sum(sums), [-128, -128.5, -256.5, -259.5])


@functools.cache
def gradients(form):
    return jax.jit(lambda arguments, g: jax.vjp(form, *arguments)[1](g))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("chunk", [16, 256])
def test_gradients_equal_those_of_the_sequential_form(chunk, steps):
    arguments, g = inputs(150, steps), inputs(150, seed=1)[0]
    expected, actual = gradients(ssd_sequential)(arguments, g), gradients(chunked(chunk))(arguments, g)
    errors = [relative(a, np.asarray(e)) for a, e in zip(actual, expected, strict=True)]
    of_rates = errors.pop(2)  # A's gradient adds up all tokens, weighted by dt: large steps drown small ones
    assert max(errors) < 2e-6
    assert of_rates < (1e-5 if steps == "usual" else 1e-3)


def test_gradients_equal_finite_differences():
    arguments, g = inputs(20), inputs(20, seed=1)[0]
    for i, gradient in enumerate(gradients(chunked(8))(arguments, g)):
        direction = np.random.default_rng(i).standard_normal(arguments[i].shape)
        moved = [arguments[i] + sign * 1e-5 * direction for sign in (1, -1)]
        ends = [np.sum(g * definition(*arguments[:i], a, *arguments[i + 1 :])) for a in moved]
        assert np.sum(gradient * direction) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("chunk", [16, 256])
def test_bfloat16_stays_near(chunk):
    x, dt, A, B, C = inputs(100)
    x, B, C = (jnp.asarray(a, jnp.bfloat16) for a in (x, B, C))
    expected = definition(*(np.asarray(a, np.float32) for a in (x, dt, A, B, C)))
    for form in (jax.jit(ssd_sequential), chunked(chunk)):
        y = form(x, dt, A, B, C)
        assert y.dtype == jnp.bfloat16
        assert relative(y.astype(jnp.float32), expected) < 0.01


def test_the_past_alone_counts():
    x, *rest = inputs(40)
    later = x.copy()
    later[:, 21:] += 1
    before, after = (np.asarray(chunked(16)(a, *rest)) for a in (x, later))
    np.testing.assert_array_equal(before[:, :21], after[:, :21])
    assert (before[:, 21:] != after[:, 21:]).any(axis=(2, 3)).all()


def test_vmap():
    arguments = inputs(20)
    stacked = [np.stack([a, 0.5 * a]) for a in arguments]
    mapped = jax.vmap(chunked(8))(*stacked)
    np.testing.assert_allclose(mapped[0], chunked(8)(*arguments), atol=1e-6)
    np.testing.assert_allclose(mapped[1], chunked(8)(*(0.5 * a for a in arguments)), atol=1e-6)


@pytest.mark.parametrize("chunk", [0, 513])
def test_impossible_chunks(chunk):
    with pytest.raises(BadInput, match=f"chunk: got {chunk}, expected 1 to 512"):
        ssd_chunked(*inputs(4), chunk=chunk)
