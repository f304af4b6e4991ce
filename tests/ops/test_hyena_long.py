"""Long-filter Hyena: its convolution, reach, filters at any length, gradients, cost, names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operator_checks import assert_exports, assert_gradients, made, weights_of

from graftax.errors import BadInput
from graftax.ops.conv import long_conv, long_conv_size
from graftax.ops.hyena_long import LongFilter
from graftax.spec import op
from graftax.testing import tiny_spec

SPEC = tiny_spec(hidden_size=24, num_heads=3)
both_ways = pytest.mark.parametrize("bidirectional", [False, True])


def inputs(n=SPEC.tokens):
    return np.random.default_rng(0).standard_normal((2, n, SPEC.width), np.float32)


def long_hyena(**options):
    return made(op("hyena_long", filter_width=8, **options), SPEC)


@pytest.mark.parametrize(
    ("n", "taps", "ahead"), [(1, 1, 0), (16, 16, 0), (16, 31, 15), (7, 13, 6), (16, 4, 3), (5, 3, 1), (4, 9, 8), (40, 5, 0)]
)
def test_long_conv_equals_the_definition(n, taps, ahead):
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, n, 3), np.float32), rng.standard_normal((taps, 3), np.float32)
    expected = np.zeros(x.shape)
    for i in range(n):
        for k in range(taps):
            j = i - (taps - 1 - ahead) + k
            if 0 <= j < n:
                expected[:, i] += kernel[k].astype(np.float64) * x[:, j]
    assert np.abs(jax.jit(long_conv, static_argnums=2)(x, kernel, ahead) - expected).max() < 2e-6 * np.abs(expected).max()


def test_bidirectional_filters_cost_no_longer_transforms():
    assert long_conv_size(256, 511, 255) == long_conv_size(256, 256) == 512


def definition(operator, weights, x):
    """The operator in float64, its filter written out as a matrix of lags, window and network by hand."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), weights)
    n, d = x.shape[1:]
    t = np.arange(n) / (n - 1)
    angles = 2 * np.pi * t[:, None] * np.arange(1, 9)
    h = np.concatenate([t[:, None], np.cos(angles), np.sin(angles)], axis=1)
    net = p["long_filter"]
    for layer in ("fc1", "fc2"):
        h = np.sin(10 * (h @ net[layer]["kernel"] + net[layer]["bias"]))
    window = 0.01 ** (t[:, None] * np.linspace(1 / 1.5, 1 / 0.3, d))
    window /= window.sum(0)
    filters = (h @ net["fc3"]["kernel"]).reshape(n, -1, d) * window[:, None]
    u = x @ p["in_proj"]["kernel"] + p["in_proj"]["bias"]
    taps = p["short_filter"]["kernel"]
    padded = np.pad(u, ((0, 0), (len(taps) - 1, 0), (0, 0)))
    u = p["short_filter"]["bias"] + sum(padded[:, i : i + n] * taps[i] for i in range(len(taps)))
    q, k, v = np.split(u, 3, axis=-1)
    mixed = k * v * net["skip"]
    for i in range(n):
        for j in range(n):
            if j <= i or operator.bidirectional:
                mixed[:, i] += filters[abs(i - j), int(j > i)] * (k * v)[:, j]
    return (q * mixed) @ p["out_proj"]["kernel"] + p["out_proj"]["bias"]


@both_ways
@pytest.mark.parametrize("n", [16, 9])
def test_equals_the_definition(bidirectional, n):
    operator = long_hyena(bidirectional=bidirectional, kernel=3)
    weights = weights_of(operator)
    x = inputs(n)
    expected = definition(operator, weights, x)
    error = np.abs(jax.jit(operator.apply)({"params": weights}, x) - expected).max()
    assert error < 5e-6 * np.abs(expected).max()  # sines of sines of tens of radians, in float32


@both_ways
def test_reach(bidirectional):
    operator, x = long_hyena(bidirectional=bidirectional), inputs()
    weights = weights_of(operator)
    changed = x.copy()
    changed[:, 8] += 1
    before, after = (np.asarray(jax.jit(operator.apply)({"params": weights}, a)) for a in (x, changed))
    moved = np.abs(before - after).max(axis=(0, 2))
    scale = np.abs(before).max()
    assert moved[8:].min() > 1e-4 * scale
    # Through the FFT, "nothing" is rounding.
    assert moved[:8].max() < 2e-6 * scale if not bidirectional else moved[:8].min() > 1e-4 * scale


@both_ways
def test_gradients_equal_numerical_differences(bidirectional):
    operator = long_hyena(bidirectional=bidirectional)
    assert_gradients(operator, weights_of(operator), inputs(), step=0.002)


@both_ways
def test_fresh_filter_is_near_the_identity_at_every_length(bidirectional):
    module = LongFilter(32, 64, bidirectional)
    distances = []
    params = jax.jit(module.init)(jax.random.key(0), jnp.ones((1, 4, 32)))
    assert (params["params"]["skip"] == 1).all()
    for n in (1, 16, 1024):
        x = jnp.ones((1, n, 32))  # the input on which a filter's whole mass adds up
        distances.append(float(jnp.abs(jax.jit(module.apply)(params, x) - x).max()))
    assert 0 < max(distances) < 3


@pytest.mark.slow
def test_bfloat16_stays_near():
    operator, x = long_hyena(bidirectional=True), inputs()
    weights = weights_of(operator)
    expected = operator.apply({"params": weights}, x)
    out = operator.with_dtype(jnp.bfloat16).apply({"params": weights}, x)
    assert out.dtype == jnp.bfloat16
    assert jnp.abs(out.astype(jnp.float32) - expected).max() < 0.03 * jnp.abs(expected).max()


@both_ways
def test_cost(bidirectional):
    operator = long_hyena(bidirectional=bidirectional)
    leaves = jax.tree.leaves(weights_of(operator))
    cost = operator.cost()
    assert cost.params == sum(leaf.size for leaf in leaves)
    n, d, m, out = 16, 24, 8, 24 * (1 + bidirectional)
    network = 2 * n * (17 * m + m * m + m * out)
    transforms = d * (3 * 2.5 * 32 * 5 + 6 * 17)  # 2 n - 1 = 31 points, rounded up to 32
    assert cost.op_flops == 2 * n * d + network + n * out + transforms + 2 * n * d
    assert cost.featurizer_flops == 8 * n * d * d + 24 * n * d


def test_cost_is_quasi_linear():
    def inner(grid):
        spec = tiny_spec(hidden_size=24, num_heads=3, input_size=2 * grid)
        return made(op("hyena_long"), spec).cost().op_flops

    assert 4 < inner(128) / inner(64) < 4.6  # n log n; attention has 16


@both_ways
def test_recognised_from_its_tensors(bidirectional):
    assert_exports(op("hyena_long", kernel=3, filter_width=8, bidirectional=bidirectional))


def test_transplant_from_the_short_family():
    operator, x = made(op("hyena_long"), SPEC), made(op("hyena_x"), SPEC)
    fresh, donor = weights_of(operator), weights_of(x, seed=1)
    taken = operator.transplant(fresh, x, donor)
    assert all(taken[name] is donor[name] for name in donor)
    assert taken["long_filter"] is fresh["long_filter"]


@pytest.mark.parametrize("option", ["kernel", "filter_width"])
def test_refuses(option):
    with pytest.raises(BadInput, match=f"hyena_long {option}: got 0"):
        made(op("hyena_long", **{option: 0}), SPEC)
