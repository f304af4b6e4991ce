"""2-D Hyena: its convolution against PyTorch's order of taps, reach on the grid, gradients, cost, names."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from joint_oracle import IMG, TXT, built, gated_2d
from operator_checks import assert_exports, assert_gradients, made, weights_of

from graftax.errors import BadInput
from graftax.ops import resolve
from graftax.ops.hyena_2d import grid_conv
from graftax.spec import op
from graftax.testing import tiny_spec

SPEC = tiny_spec(hidden_size=24, num_heads=3)


def inputs(n=SPEC.tokens):
    return np.random.default_rng(0).standard_normal((2, n, SPEC.width), np.float32)


@pytest.mark.parametrize(("grid", "taps"), [((4, 4), 3), ((5, 5), 5), ((2, 5), 5), ((1, 1), 3), ((6, 3), 1), ((3, 7), 3)])
def test_grid_conv_equals_xla(grid, taps):
    rng = np.random.default_rng(0)
    shapes = (2, grid[0] * grid[1], 3), (taps, taps, 1, 3), (3,)
    x, kernel, bias = (rng.standard_normal(shape, np.float32) for shape in shapes)
    expected = jax.lax.conv_general_dilated(
        x.reshape(2, *grid, 3),
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    )
    np.testing.assert_allclose(grid_conv(x, kernel, bias, grid), expected.reshape(x.shape) + bias, atol=1e-5)


@pytest.mark.parametrize(("kernel", "place", "seen"), [
    (3, 5, [0, 1, 2, 4, 5, 6, 8, 9, 10]), (3, 3, [2, 3, 6, 7]), (5, 0, [0, 1, 2, 4, 5, 6, 8, 9, 10]), (1, 7, [7])
])  # fmt: skip
def test_reach(kernel, place, seen):
    """Neighbours on the 4 x 4 grid, above and below alike; rows do not run into each other."""
    operator, x = made(op("hyena_2d", kernel=kernel), SPEC), inputs()
    weights = weights_of(operator)
    changed = x.copy()
    changed[:, place] += 1
    before, after = (np.asarray(operator.apply({"params": weights}, a)) for a in (x, changed))
    assert np.flatnonzero((before != after).any(axis=(0, 2))).tolist() == seen


def test_equals_the_definition():
    operator, x = made(op("hyena_2d"), SPEC), inputs()
    weights = weights_of(operator)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), weights)
    u = np.pad((x @ p["in_proj"]["kernel"] + p["in_proj"]["bias"]).reshape(2, 4, 4, -1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = p["grid_filter"]["kernel"]
    u = sum(u[:, i : i + 4, j : j + 4] * taps[i, j, 0] for i in range(3) for j in range(3)) + p["grid_filter"]["bias"]
    q, k, v = np.split(u.reshape(2, 16, -1), 3, axis=-1)
    expected = (q * k * v) @ p["out_proj"]["kernel"] + p["out_proj"]["bias"]
    np.testing.assert_allclose(operator.apply({"params": weights}, x), expected, atol=1e-5)


def test_gradients_equal_numerical_differences():
    operator = made(op("hyena_2d"), SPEC)
    assert_gradients(operator, weights_of(operator), inputs())


@pytest.mark.slow
def test_bfloat16_stays_near():
    operator, x = made(op("hyena_2d"), SPEC), inputs()
    weights = weights_of(operator)
    half = operator.with_dtype(jnp.bfloat16)
    assert half.apply({"params": weights}, x).dtype == jnp.bfloat16

    @functools.partial(jax.jit, static_argnums=0)
    def outputs(operator):
        out, back = jax.vjp(lambda weights: operator.apply({"params": weights}, x).astype(jnp.float32), weights)
        return {"out": out, **back(jnp.ones_like(out))[0]}

    for ours, exact in zip(jax.tree.leaves(outputs(half)), jax.tree.leaves(outputs(operator)), strict=True):
        assert jnp.abs(ours - exact).max() < 0.03 * jnp.abs(exact).max()


def test_cost():
    operator = made(op("hyena_2d", kernel=5), SPEC)
    cost, (n, d) = operator.cost(), (16, 24)
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(weights_of(operator)))
    assert (cost.op_flops, cost.featurizer_flops) == (2 * n * d, 8 * n * d * d + 2 * 25 * 3 * n * d)


def test_recognised_from_its_tensors():
    assert_exports(op("hyena_2d", kernel=5))


def test_transplant_keeps_projections():
    operator, x = made(op("hyena_2d"), SPEC), made(op("hyena_x"), SPEC)
    fresh, donor = weights_of(operator), weights_of(x, seed=1)
    taken = operator.transplant(fresh, x, donor)
    assert taken["in_proj"] is donor["in_proj"]
    assert taken["grid_filter"] is fresh["grid_filter"]
    assert taken.keys() == fresh.keys()


@pytest.mark.parametrize("kernel", [0, 2, -1])
def test_refuses_filters_without_a_centre(kernel):
    with pytest.raises(BadInput, match=f"hyena_2d kernel: got {kernel}"):
        made(op("hyena_2d", kernel=kernel), SPEC)


def test_refuses_a_text_alone():
    with pytest.raises(BadInput, match="hyena_2d: got 5 tokens of text and no image"):
        resolve(op("hyena_2d"), "mixer", dataclasses.replace(SPEC.sizes, grid=(0, 0), text=5))


# --- A text before the image -------------------------------------------------------------------------------------------

X = np.concatenate([TXT, IMG], axis=1)


@pytest.mark.parametrize("kernel", [3, 5])
def test_with_a_text_equals_the_definition(kernel):
    operator, p = built("hyena_2d", kernel=kernel)
    u = X.astype(np.float64) @ p["in_proj"]["kernel"] + p["in_proj"]["bias"]
    expected = gated_2d(u, p["short_filter"], p["grid_filter"]) @ p["out_proj"]["kernel"] + p["out_proj"]["bias"]
    np.testing.assert_allclose(operator.apply({"params": p}, X), expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


def test_gradients_with_a_text():
    operator, weights = built("hyena_2d")
    assert_gradients(operator, weights, X)


def test_cost_with_a_text():
    operator, params = built("hyena_2d", kernel=5)
    cost, (m, n, d) = operator.cost(), (5, 6, 12)
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert cost.op_flops == 2 * (m + n) * d + 2 * (m + n) * d  # gates; means and their sums
    assert cost.featurizer_flops == 8 * (m + n) * d * d + 2 * 3 * d * (5 * m + 25 * n)


def test_takes_over_a_filter_along_the_text():
    operator, fresh = built("hyena_2d")
    donor, weights = built("hyena_x", kernel=3)
    taken = operator.transplant(fresh, donor, weights)
    assert taken["short_filter"] is weights["short_filter"]
    assert taken["grid_filter"] is fresh["grid_filter"]
