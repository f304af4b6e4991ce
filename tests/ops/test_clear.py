"""Attention in a disc: against dense attention under its mask, with and without text, memory, cost, names."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operator_checks import assert_exports, assert_gradients, made, weights_of

from graftax.errors import BadInput
from graftax.ops import build, resolve
from graftax.ops.base import shapes_of
from graftax.ops.clear import visible_pairs
from graftax.spec import op
from graftax.testing import tiny_spec

SPEC = tiny_spec(hidden_size=24, num_heads=3)
SLOW = pytest.mark.slow


def sizes(grid, text=0):
    return dataclasses.replace(SPEC.sizes, grid=grid, text=text)


def sized(scion, grid, text=0):
    return build(resolve(scion, "mixer", sizes(grid, text)), sizes(grid, text))


def inputs(n):
    return np.random.default_rng(0).standard_normal((2, n, SPEC.width), np.float32)


def visible(grid, radius, text):
    """(m + n, m + n), pair by pair: text sees and is seen by all, image tokens those nearer than the radius."""
    places = [None] * text + [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    return np.array(
        [[None in (a, b) or (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 < radius**2 for b in places] for a in places]
    )


def definition(x, p, mask):
    """Softmax attention in float64 over what the mask lets a query see."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    b, n, d = x.shape
    q, k, v = np.moveaxis((x @ p["qkv"]["kernel"] + p["qkv"]["bias"]).reshape(b, n, 3, 3, 8), 2, 0)
    weights = np.exp(np.einsum("bqhk,bmhk->bhqm", q, k) / 8**0.5) * mask
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqm,bmhk->bqhk", weights, v).reshape(b, n, d) @ p["proj"]["kernel"] + p["proj"]["bias"]


@pytest.mark.parametrize(
    ("grid", "radius", "text"), [((12, 9), 3, 0), ((12, 9), 3, 4), ((4, 5), 3, 4), ((3, 4), 10**6, 2), ((9, 1), 1, 3)]
)
def test_equals_masked_attention(grid, radius, text):
    """Of these grids the first two go strip by strip, the others through one matrix."""
    operator = sized(op("clear", radius=radius), grid, text)
    x, weights = inputs(text + grid[0] * grid[1]), weights_of(operator)
    out = jax.jit(operator.apply)({"params": weights}, x)
    expected = definition(x, weights, visible(grid, radius, text))
    assert np.abs(out - expected).max() < 1e-5 * np.abs(expected).max()


@SLOW
def test_bfloat16_stays_near():
    operator = sized(op("clear", radius=3), (12, 9), 4)
    x, weights = inputs(112), weights_of(operator)
    out = jax.jit(operator.with_dtype(jnp.bfloat16).apply)({"params": weights}, x)
    expected = jax.jit(operator.apply)({"params": weights}, x)
    assert out.dtype == jnp.bfloat16
    assert jnp.abs(out.astype(jnp.float32) - expected).max() < 0.03 * jnp.abs(expected).max()


def test_gradients_equal_numerical_differences():
    operator = sized(op("clear", radius=2), (4, 5), 2)
    assert_gradients(operator, weights_of(operator), inputs(22), step=0.05)


def test_takes_over_attention():
    mha, wide, narrow = (sized(one, (4, 5), 2) for one in (op("mha"), op("clear", radius=7), op("clear", radius=2)))
    weights = weights_of(mha)
    taken = wide.transplant({}, mha, weights)
    assert all(jax.tree.leaves(jax.tree.map(lambda own, donor: own is donor, taken, weights)))
    dense, far, close = (one.apply({"params": weights}, inputs(22)) for one in (mha, wide, narrow))
    np.testing.assert_allclose(far, dense, atol=1e-5)
    assert abs(close - dense).max() > 0.01


@pytest.mark.parametrize(("grid", "radius", "text"), [((12, 9), 3, 4), ((4, 5), 99, 0), ((3, 4), 1, 2)])
def test_cost_counts_the_pairs_that_are_visible(grid, radius, text):
    pairs, n, d = int(visible(grid, radius, text).sum()), text + grid[0] * grid[1], SPEC.width
    operator = sized(op("clear", radius=radius), grid, text)
    cost = operator.cost()
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(shapes_of(operator)))
    assert (cost.op_flops, cost.featurizer_flops) == (pairs * (4 * d + 2 * 3), 8 * n * d * d)


def test_cost_at_the_papers_size():
    """A radius of 8 on the 64 x 64 tokens of 1,024 pixels: 193 points with x^2 + y^2 < 64, fewer at the borders."""
    assert visible_pairs((2000, 2000), 8) == pytest.approx(193 * 2000**2, rel=0.005)
    assert 0.85 * 193 * 64**2 < visible_pairs((64, 64), 8) < 193 * 64**2


def test_is_not_taken_for_another_attention():
    assert_exports(op("clear"))
    operator = made(op("clear"), SPEC)
    shapes = {key.name: (1,) for key in operator.torch_keys}
    assert operator.recognise(shapes, {"radius": 5}) == {"radius": 5}


def test_refuses():
    with pytest.raises(BadInput, match="clear radius: got 0"):
        made(op("clear", radius=0), SPEC)
    with pytest.raises(BadInput, match="clear: got 5 tokens of text and no image"):
        sized(op("clear"), (0, 0), 5)
