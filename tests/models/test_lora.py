"""Low-rank adapters: folded into kernels before anything runs, unchanged function at first."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.models import DiT, forward, init, param_shapes
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
Y = jnp.array([1, 10])


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


@pytest.mark.parametrize("plan", ["unroll", "scan", "kind_scan"])
def test_every_plan_and_tap_sees_the_folded_kernels(plan):
    options = {"plan": plan, "capture": ("mixer/out", "block/out")}
    actual = jax.jit(lambda p: forward(SPEC, p, X, T, Y, **options))(PARAMS)
    expected = jax.jit(lambda p: forward(PLAIN, p, X, T, Y, **options))(materialise(SPEC, PARAMS))
    assert_trees_close(actual, expected)


def test_collected_blocks_compute_the_same():
    mixed = tiny_spec().replace(
        blocks=(*PLAIN.blocks[:2], *tiny_spec(mixer=op("hyena_x")).blocks[2:]), adapters=SPEC.adapters
    )
    params = random_params(mixed, jax.random.key(2))
    run = jax.jit(lambda p: forward(mixed, p, X, T, Y)[0])
    np.testing.assert_allclose(run(collect(mixed, params)), run(params), rtol=1e-4, atol=1e-4)


def test_at_first_nothing_changes():
    params = init(SPEC, jax.random.key(3))
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
    fresh = {**PARAMS, "lora": init(SPEC, jax.random.key(3))["lora"]}
    for params, a_is_zero in ((fresh, True), (PARAMS, False)):
        grads = loss(params)
        for path in PATHS:
            assert np.any(leaf(grads["lora"], path)["b"])
            assert np.any(leaf(grads["lora"], path)["a"]) != a_is_zero


def test_the_flax_facade_understands_adapters():
    module = DiT(SPEC)
    params = jax.eval_shape(module.init, jax.random.key(0), X, T, Y)["params"]
    assert jax.tree.structure(dict(params)) == jax.tree.structure(PARAMS)
    out = jax.jit(module.apply)({"params": PARAMS}, X, T, Y)
    np.testing.assert_allclose(out, jax.jit(lambda p: forward(SPEC, p, X, T, Y)[0])(PARAMS), rtol=1e-5, atol=1e-5)


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


def test_json_round_trip_and_specs_from_before_adapters():
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC
    old = json.loads(PLAIN.to_json())
    del old["adapters"], old["compat"]
    assert ModelSpec.from_json(json.dumps(old)) == PLAIN
    old["adapters"] = [{"path": "final/linear/kernel", "rank": 2}]
    with pytest.raises(BadInput, match="alpha"):
        ModelSpec.from_json(json.dumps(old))


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ((Adapter("b", 2, 1.0), Adapter("a", 2, 1.0)), "expected them sorted, each once"),
        ((Adapter("a", 2, 1.0), Adapter("a", 3, 1.0)), "expected them sorted, each once"),
        ((Adapter("a", 0, 1.0),), "rank 0, expected a positive integer"),
        ((Adapter("a", 1.5, 1.0),), "rank 1.5, expected a positive integer"),  # pyright: ignore
        ((Adapter("a", 2, "1"),), "alpha '1', expected a number"),  # pyright: ignore
    ],
)
def test_specs_refuse_impossible_adapters(adapters, message):
    with pytest.raises(BadInput, match=message):
        PLAIN.replace(adapters=adapters)
