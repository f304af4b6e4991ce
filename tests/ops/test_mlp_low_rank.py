"""An MLP in factors: definition, gradients, types, cost, names, and the nearest kernels of its rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from operator_checks import assert_exports, assert_gradients, made, weights_of

from graftax.errors import BadInput
from graftax.ops.base import shapes_of
from graftax.spec import op
from graftax.testing import tiny_spec
from graftax.train.sharding import tree_shardings

SPEC = tiny_spec(hidden_size=24, num_heads=3)
X = np.random.default_rng(0).standard_normal((2, 16, 24), np.float32)


def test_equals_the_definition_at_its_cost():
    operator = made(op("mlp_low_rank", rank=5, ratio=3), SPEC)
    weights = weights_of(operator)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), weights)
    hidden = X @ p["fc1"]["down"]["kernel"] @ p["fc1"]["up"]["kernel"] + p["fc1"]["up"]["bias"]
    hidden *= (1 + np.tanh((2 / np.pi) ** 0.5 * (hidden + 0.044715 * hidden**3))) / 2
    expected = hidden @ p["fc2"]["down"]["kernel"] @ p["fc2"]["up"]["kernel"] + p["fc2"]["up"]["bias"]
    np.testing.assert_allclose(operator.apply({"params": weights}, X), expected, atol=1e-5)
    assert operator.cost().params == sum(leaf.size for leaf in jax.tree.leaves(weights))
    assert operator.cost().flops == 2 * 16 * (2 * 5 * 24 + 2 * 5 * 72)


def test_gradients_and_bfloat16():
    operator = made(op("mlp_low_rank", rank=5), SPEC)
    weights = weights_of(operator)
    assert_gradients(operator, weights, X, step=0.05)
    out, expected = operator.with_dtype(jnp.bfloat16).apply({"params": weights}, X), operator.apply({"params": weights}, X)
    assert out.dtype == jnp.bfloat16
    assert jnp.abs(out.astype(jnp.float32) - expected).max() < 0.02 * jnp.abs(expected).max()


def test_starts_as_the_nearest_of_its_rank_and_goes_back():
    mlp, low, whole = (made(one, SPEC) for one in (op("mlp"), op("mlp_low_rank", rank=5), op("mlp_low_rank", rank=24)))
    donor = weights_of(mlp)
    taken = low.transplant({}, mlp, donor)
    for name, layer in taken.items():
        u, s, v = np.linalg.svd(np.asarray(donor[name]["kernel"], np.float64))
        nearest = u[:, :5] * s[:5] @ v[:5]
        np.testing.assert_allclose(layer["down"]["kernel"] @ layer["up"]["kernel"], nearest, atol=1e-5)
        np.testing.assert_array_equal(layer["up"]["bias"], donor[name]["bias"])
    outs = [one.apply({"params": p}, X) for one, p in ((mlp, donor), (whole, whole.transplant({}, mlp, donor)))]
    np.testing.assert_allclose(*outs, atol=1e-5)
    outs = [one.apply({"params": p}, X) for one, p in ((low, taken), (mlp, mlp.transplant({}, low, taken)))]
    np.testing.assert_allclose(*outs, atol=1e-5)
    assert low.transplant({}, low, taken) is taken
    assert low.transplant({}, made(op("mlp", ratio=3), SPEC), {}) is None


def test_hidden_channels_are_split_and_names_kept():
    shapes = shapes_of(made(op("mlp_low_rank"), tiny_spec(hidden_size=256)))
    found = tree_shardings({"mlp": shapes}, AbstractMesh((1, 2), ("fsdp", "tensor")))["mlp"]
    places = {
        f"{layer}/{side}": tuple(part["kernel"].spec) for layer, parts in found.items() for side, part in parts.items()
    }
    assert places["fc1/up"][1] == places["fc2/down"][0] == "tensor"
    assert "tensor" not in (*places["fc1/down"], *places["fc2/up"], places["fc1/up"][0], places["fc2/down"][1])
    assert_exports(op("mlp_low_rank", rank=5))


@pytest.mark.parametrize("rank", [0, 13])
def test_refuses(rank):
    with pytest.raises(BadInput, match=f"mlp_low_rank rank: got {rank}, expected 1 to 12, the narrower side"):
        made(op("mlp_low_rank", ratio=0.5, rank=rank), SPEC)
