"""DiCo's convolutions: against loops, and PyTorch's modules as its authors wire them; gradients, types, cost, names."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operator_checks import assert_exports, assert_gradients, made, weights_of

from graftax.errors import BadInput
from graftax.ops import resolve
from graftax.spec import Sizes, op
from graftax.testing import tiny_spec

SPEC = tiny_spec(hidden_size=24, num_heads=3)
X = np.random.default_rng(0).standard_normal((2, 16, 24), np.float32)


def definition(x, p):
    """In float64, one token and one neighbour of it after the other."""
    u = x @ p["in_proj"]["kernel"].astype(np.float64) + p["in_proj"]["bias"]
    g, taps = np.zeros_like(u) + p["grid_filter"]["bias"], p["grid_filter"]["kernel"]
    for i in range(4):
        for j in range(4):
            for r in range(max(i - 1, 0), min(i + 2, 4)):
                for c in range(max(j - 1, 0), min(j + 2, 4)):
                    g[:, 4 * i + j] += u[:, 4 * r + c] * taps[r - i + 1, c - j + 1, 0]
    g *= (1 + np.vectorize(math.erf)(g / math.sqrt(2))) / 2
    gates = g.mean(1, keepdims=True) @ p["attention"]["kernel"] + p["attention"]["bias"]
    return (g / (1 + np.exp(-gates))) @ p["out_proj"]["kernel"] + p["out_proj"]["bias"]


def test_equals_the_definition():
    operator = made(op("dico"), SPEC)
    weights = jax.tree.map(np.asarray, weights_of(operator))
    expected = definition(X, weights)
    assert np.abs(operator.apply({"params": weights}, X) - expected).max() < 1e-5 * np.abs(expected).max()


def test_equals_the_authors_wiring():
    torch = pytest.importorskip("torch")
    operator = made(op("dico", kernel=5), SPEC)
    weights = jax.tree.map(lambda a: torch.from_numpy(np.array(a)), weights_of(operator))

    def layer(name, x):  # 1 x 1
        kernel = weights[name]["kernel"].T[:, :, None, None]
        return torch.nn.functional.conv2d(x, kernel, weights[name]["bias"])

    image = torch.from_numpy(X).transpose(1, 2).reshape(2, 24, 4, 4)
    taps = weights["grid_filter"]["kernel"].permute(3, 2, 0, 1)
    x = layer("in_proj", image)
    x = torch.nn.functional.gelu(torch.nn.functional.conv2d(x, taps, weights["grid_filter"]["bias"], padding=2, groups=24))
    x = x * torch.sigmoid(layer("attention", torch.nn.functional.adaptive_avg_pool2d(x, 1)))
    expected = layer("out_proj", x).flatten(2).transpose(1, 2).numpy()
    ours = operator.apply({"params": weights_of(operator)}, X)
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_gradients_and_bfloat16():
    operator = made(op("dico"), SPEC)
    weights = weights_of(operator)
    assert_gradients(operator, weights, X, step=0.05)
    out, expected = operator.with_dtype(jnp.bfloat16).apply({"params": weights}, X), operator.apply({"params": weights}, X)
    assert out.dtype == jnp.bfloat16
    assert jnp.abs(out.astype(jnp.float32) - expected).max() < 0.02 * jnp.abs(expected).max()


def test_cost_and_names():
    operator = made(op("dico", kernel=5), SPEC)
    cost, (n, d) = operator.cost(), (16, 24)
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(weights_of(operator)))
    assert (cost.op_flops, cost.featurizer_flops) == (2 * d * d + 2 * n * d, 4 * n * d * d + 2 * 25 * n * d)
    assert_exports(op("dico", kernel=5))


def test_takes_over_its_own_kind_alone():
    small, large = made(op("dico"), SPEC), made(op("dico", kernel=5), SPEC)
    fresh, weights = weights_of(large, 1), weights_of(small, 2)
    taken = large.transplant(fresh, small, weights)
    assert taken["grid_filter"] is fresh["grid_filter"]
    assert all(taken[name] is weights[name] for name in ("in_proj", "attention", "out_proj"))
    assert small.transplant(weights, made(op("hyena_2d"), SPEC), {}) is None


def test_refuses():
    with pytest.raises(BadInput, match="dico kernel: got 2, expected an odd number"):
        made(op("dico", kernel=2), SPEC)
    with pytest.raises(BadInput, match="dico: works on the image's grid alone, got 5 tokens of text"):
        resolve(op("dico"), "mixer", Sizes(24, 3, 8, (4, 4), text=5))
