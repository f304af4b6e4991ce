"""Low-rank adapters: folded into kernels before anything runs, unchanged function at first."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.models import Network, forward, init, param_shapes
from graftax.models.collect import collect
from graftax.models.cost import count_params, count_trainable, flops
from graftax.models.lora import init_adapters, materialise
from graftax.spec import Adapter, ModelSpec, op
from graftax.testing import assert_same_leaves, assert_trees_close, random_params, tiny_spec

PLAIN = tiny_spec()
PATHS = ("blocks/01/mixer/qkv/kernel", "blocks/02/adaln/kernel", "blocks/03/mlp/fc1/kernel", "final/linear/kernel")
SPEC = PLAIN.replace(adapters=tuple(Adapter(path, 3, 6.0) for path in PATHS))
PARAMS = random_params(SPEC, jax.random.key(0))
X = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))
T = jnp.array([3.0, 700.0])
Y = {"y": jnp.array([1, 10])}


def leaf(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree


def test_kernels_become_w_plus_the_scaled_product():
    plain = materialise(SPEC, PARAMS)
    for path in PATHS:
        w, adapter = leaf(PARAMS, path), leaf(PARAMS["lora"], path)
        expected = np.float64(w) + 2.0 * np.float64(adapter["a"]) @ np.float64(adapter["b"])
        np.testing.assert_allclose(leaf(plain, path), expected, rtol=1e-5, atol=1e-5)
        assert adapter["a"].shape == (w.shape[0], 3)
        assert np.abs(leaf(plain, path) - w).max() > 0.1
    assert jax.tree.structure(plain) == jax.tree.structure(param_shapes(PLAIN))
    assert_same_leaves(PARAMS, plain, [*PATHS, "lora"])


def test_a_model_without_adapters_is_left_alone():
    params = random_params(PLAIN, jax.random.key(0))
    assert materialise(PLAIN, params) is params


@functools.cache
def forwarded(plan, capture=("mixer/out", "block/out")):
    return jax.jit(lambda p: forward(SPEC, p, X, T, Y, plan=plan, capture=capture))(PARAMS)


@pytest.mark.parametrize("plan", [pytest.param("unroll", marks=pytest.mark.slow), "kind_scan"])
def test_every_plan_and_tap_sees_the_folded_kernels(plan):
    folded = jax.jit(lambda p: forward(PLAIN, p, X, T, Y, plan="unroll", capture=("mixer/out", "block/out")))
    assert_trees_close(forwarded(plan), folded(materialise(SPEC, PARAMS)))


@pytest.mark.slow
def test_collected_blocks_compute_the_same():
    mixed = tiny_spec().replace(
        blocks=(*PLAIN.blocks[:2], *tiny_spec(mixer=op("hyena_x")).blocks[2:]), adapters=SPEC.adapters
    )
    params = random_params(mixed, jax.random.key(2))
    run = jax.jit(lambda p: forward(mixed, p, X, T, Y)[0])
    np.testing.assert_allclose(run(collect(mixed, params)), run(params), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_at_first_nothing_changes():
    params = jax.jit(init, static_argnums=0)(SPEC, jax.random.key(3))
    for path in PATHS:
        adapter, fan_in = leaf(params["lora"], path), leaf(params, path).shape[0]
        assert not np.any(adapter["b"])
        assert 0.8 / fan_in**0.5 < np.abs(adapter["a"]).max() <= 1 / fan_in**0.5
    assert_trees_close(materialise(SPEC, params), {k: v for k, v in params.items() if k != "lora"}, rtol=0, atol=0)


def test_an_adapter_depends_on_its_path_and_key_alone():
    params = random_params(PLAIN, jax.random.key(0))
    alone = init_adapters(jax.random.key(5), SPEC.adapters[:1], params)
    among = init_adapters(jax.random.key(5), SPEC.adapters, params)
    np.testing.assert_array_equal(leaf(alone, PATHS[0])["a"], leaf(among, PATHS[0])["a"])
    other = init_adapters(jax.random.key(6), SPEC.adapters, params)
    assert not np.array_equal(leaf(other, PATHS[0])["a"], leaf(among, PATHS[0])["a"])


def test_gradients_reach_the_adapters():
    """With b zero only b has a gradient, scaled by alpha / rank; with both random, both have one."""
    loss = jax.jit(jax.grad(lambda p: jnp.square(forward(SPEC, p, X, T, Y)[0]).mean()))
    fresh = {**PARAMS, "lora": init_adapters(jax.random.key(3), SPEC.adapters, PARAMS)}
    for params, a_is_zero in ((fresh, True), (PARAMS, False)):
        grads = loss(params)
        for path in PATHS:
            assert np.any(leaf(grads["lora"], path)["b"])
            assert np.any(leaf(grads["lora"], path)["a"]) != a_is_zero


@pytest.mark.slow
def test_the_flax_facade_understands_adapters():
    module = Network(SPEC)
    params = jax.eval_shape(module.init, jax.random.key(0))["params"]
    assert jax.tree.structure(dict(params)) == jax.tree.structure(PARAMS)
    out = jax.jit(module.apply)({"params": PARAMS}, X, T, **Y)
    np.testing.assert_allclose(out, forwarded("auto", ())[0], rtol=1e-5, atol=1e-5)


def test_counts():
    def size(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    added = 3 * (48 + 144) + 3 * (48 + 288) + 3 * (48 + 192) + 3 * (48 + 32)
    assert size(PARAMS["lora"]) == added
    assert count_params(SPEC) == size(PARAMS) == count_params(PLAIN) + added
    assert count_trainable(SPEC) == count_trainable(PLAIN) + added
    assert flops(SPEC) == flops(PLAIN)


@pytest.mark.parametrize("path", ["blocks/01/mixer/nothing/kernel", "blocks/01/mixer/qkv/bias", "x_embedder/kernel"])
def test_adapters_need_a_kernel_of_two_axes(path):
    with pytest.raises(BadInput, match=f"adapter {path}: .* expected a kernel of two axes"):
        param_shapes(PLAIN.replace(adapters=(Adapter(path, 2, 1.0),)))


def test_json_round_trip():
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC
    with pytest.raises(BadInput, match="alpha"):
        ModelSpec.from_json(SPEC.to_json().replace(', "alpha": 6.0', ""))


@pytest.mark.parametrize("adapters", [(("b", 2), ("a", 2)), (("a", 2), ("a", 3))])
def test_specs_want_adapters_in_order_each_once(adapters):
    with pytest.raises(BadInput, match="expected them sorted, each once"):
        PLAIN.replace(adapters=tuple(Adapter(path, rank, 1.0) for path, rank in adapters))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("a", 0, 1.0), "rank: got 0, expected a positive integer"),
        (("a", 1.5, 1.0), "rank: got 1.5, expected a positive integer"),
        (("a", True, 1.0), "rank: got True, expected a positive integer"),
        (("a", 2, "1"), "alpha: got '1', expected a finite number"),
        (("a", 2, float("nan")), "alpha: got nan, expected a finite number"),
        (("", 2, 1.0), "adapter path: got '', expected a name"),
    ],
)
def test_impossible_adapters(values, message):
    with pytest.raises(BadInput, match=message):
        Adapter(*values)
