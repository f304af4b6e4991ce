"""Narrower and wider MLPs from the weights of another one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.ops.mlp import MLP, gelu, keep_neurons, split_neurons
from graftax.spec import Sizes

SIZES = Sizes(width=8, heads=2, head_dim=4, grid=(2, 2))
X = np.random.default_rng(0).standard_normal((2, SIZES.tokens, SIZES.width), np.float32)


def made(ratio, seed=0):
    operator = MLP(SIZES, ratio=ratio)
    return operator, operator.init(jax.random.key(seed), X)["params"]


def output(operator, weights):
    return operator.apply({"params": weights}, X)


def test_gelu_has_the_gradient_that_autodiff_finds():
    x = jnp.linspace(-6, 6, 101)
    plain = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=True)))
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), plain(x), atol=1e-6)


def test_neurons_that_give_nothing_can_go():
    operator, weights = made(4.0)
    silent = np.arange(32) % 4 == 1
    weights["fc2"]["kernel"] = jnp.where(silent[:, None], 0, weights["fc2"]["kernel"])
    importance = np.square(weights["fc2"]["kernel"]).sum(-1)
    narrow, _ = made(3.0)
    kept = keep_neurons(weights, importance, 24)
    np.testing.assert_allclose(output(narrow, kept), output(operator, weights), atol=1e-6)
    assert kept["fc2"]["bias"] is weights["fc2"]["bias"]


@pytest.mark.parametrize("ratio", [4.125, *(pytest.param(ratio, marks=pytest.mark.slow) for ratio in (6.0, 8.0, 11.0))])
def test_split_neurons_compute_the_same(ratio):
    (operator, weights), (wide, fresh) = made(4.0), made(ratio, seed=1)
    split = wide.transplant(fresh, operator, weights)
    assert jax.tree.map(jnp.shape, split) == jax.tree.map(jnp.shape, fresh)
    np.testing.assert_allclose(output(wide, split), output(operator, weights), atol=2e-6)


@pytest.mark.slow
def test_copies_learn_apart():
    (operator, weights), (wide, fresh) = made(4.0), made(6.0, seed=1)
    split = wide.transplant(fresh, operator, weights)
    gradient = jax.grad(lambda p: jnp.square(output(wide, p) - 1).mean())(split)["fc1"]["kernel"]
    cosine = [
        float(gradient[:, i] @ gradient[:, 32 + i] / jnp.linalg.norm(gradient[:, i]) / jnp.linalg.norm(gradient[:, 32 + i]))
        for i in range(16)
    ]
    assert max(cosine) < 0.999
    equal = {**split, "fc2": {**split["fc2"], "kernel": split["fc2"]["kernel"].at[32:].set(split["fc2"]["kernel"][:16])}}
    same = jax.grad(lambda p: jnp.square(output(wide, p) - 1).mean())(equal)["fc1"]["kernel"]
    np.testing.assert_allclose(same[:, :16], same[:, 32:], atol=1e-7)  # why equal shares would not do


def test_widths_that_transplant():
    (narrow, less), (wide, more) = made(3.0), made(4.0)
    assert wide.transplant({}, MLP(SIZES, ratio=4.0), more) is more
    importance = np.arange(32.0)  # the choice of neurons is not the operator's
    np.testing.assert_array_equal(
        narrow.transplant(less, wide, more, importance)["fc1"]["kernel"], keep_neurons(more, importance, 24)["fc1"]["kernel"]
    )
    assert wide.transplant(more, narrow, less).keys() == split_neurons(less, more).keys()
