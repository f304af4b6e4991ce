"""Linear attention: against its definition pair by pair, the convolution on the image alone, cost, names, transplants."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operator_checks import assert_exports, assert_gradients, made, weights_of

from graftax.errors import BadInput
from graftax.ops import build, resolve
from graftax.ops.base import shapes_of
from graftax.ops.linear import linear_attention
from graftax.spec import op
from graftax.testing import tiny_spec

SPEC = tiny_spec(hidden_size=24, num_heads=3)
SIZES = dataclasses.replace(SPEC.sizes, grid=(3, 5))


def inputs(n=SPEC.tokens):
    return np.random.default_rng(0).standard_normal((2, n, SPEC.width), np.float32)


def sized(scion, text=0):
    sizes = dataclasses.replace(SIZES, text=text)
    return build(resolve(scion, "mixer", sizes), sizes)


def definition(x, p, feature, sizes, conv):
    """In float64, one pair of tokens, one neighbour on the grid after the other."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    b, n, d = x.shape
    q, k, v = np.moveaxis((x @ p["qkv"]["kernel"] + p["qkv"]["bias"]).reshape(b, n, 3, 3, 8), 2, 0)
    phi = {"relu": lambda a: np.maximum(a, 0), "elu": lambda a: np.where(a > 0, a + 1, np.exp(np.minimum(a, 0)))}[feature]
    weights = np.einsum("bqhk,bmhk->bhqm", phi(q), phi(k))  # n x n, which the operator never has
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    out = np.einsum("bhqm,bmhk->bqhk", weights, v).reshape(b, n, d)
    if conv:
        rows, columns = sizes.grid
        image = v.reshape(b, n, d)[:, sizes.text :].reshape(b, rows, columns, d)
        for i in range(rows):
            for j in range(columns):
                token = sizes.text + i * columns + j
                out[:, token] += p["local"]["bias"]
                for r in range(max(i - 1, 0), min(i + 2, rows)):
                    for c in range(max(j - 1, 0), min(j + 2, columns)):
                        out[:, token] += image[:, r, c] * p["local"]["kernel"][r - i + 1, c - j + 1, 0]
    return out @ p["proj"]["kernel"] + p["proj"]["bias"]


@pytest.mark.parametrize(
    ("feature", "conv", "text"), [("relu", True, 0), ("elu", True, 4), ("relu", False, 4), ("elu", False, 0)]
)
def test_equals_the_definition(feature, conv, text):
    operator = sized(op("linear", feature=feature, conv=conv), text)
    x, weights = inputs(text + 15), weights_of(operator)
    out = jax.jit(operator.apply)({"params": weights}, x)
    expected = definition(x, weights, feature, operator.sizes, conv)
    assert np.abs(out - expected).max() < 1e-5 * np.abs(expected).max()


def test_queries_without_features_get_nothing():
    q, k, v = (jnp.asarray(inputs().reshape(2, 16, 3, 8)) for _ in range(3))
    q = jax.nn.relu(q).at[:, 3].set(0)
    out, back = jax.vjp(linear_attention, q, jax.nn.relu(k), v)
    assert not out[:, 3].any()
    assert all(np.isfinite(g).all() for g in back(jnp.ones_like(out)))


def test_memory_is_linear_in_tokens():
    def largest(n):
        shape = jax.ShapeDtypeStruct((1, n, 2, 8), jnp.float32)
        loss = lambda q, k, v: linear_attention(q, k, v).sum()  # noqa: E731
        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(shape, shape, shape)
        return max(np.prod(var.aval.shape) for eqn in jaxpr.eqns for var in eqn.outvars)

    assert largest(4096) == 4 * largest(1024) == 4096 * 2 * 8


def test_gradients_equal_numerical_differences():
    operator = sized(op("linear", feature="elu"), 2)
    assert_gradients(operator, weights_of(operator), inputs(17), step=0.02)


def test_bfloat16_stays_near():
    operator = sized(op("linear"))
    x, weights = inputs(15), weights_of(operator)
    out = operator.with_dtype(jnp.bfloat16).apply({"params": weights}, x)
    expected = operator.apply({"params": weights}, x)
    assert out.dtype == jnp.bfloat16
    assert jnp.abs(out.astype(jnp.float32) - expected).max() < 0.03 * jnp.abs(expected).max()


def test_starts_as_plain_linear_attention_with_the_projections_of_what_it_replaces():
    mha, operator, plain = sized(op("mha"), 4), sized(op("linear"), 4), sized(op("linear", conv=False), 4)
    fresh, donor = operator.init(jax.random.key(0), inputs(19))["params"], weights_of(mha)
    taken = operator.transplant(fresh, mha, donor)
    assert taken["qkv"] is donor["qkv"]
    assert taken["proj"] is donor["proj"]
    assert taken["local"] is fresh["local"]
    bare = plain.transplant(shapes_of(plain), mha, donor)
    outs = [made.apply({"params": p}, inputs(19)) for made, p in ((operator, taken), (plain, bare))]
    np.testing.assert_array_equal(*outs)
    assert abs(outs[0] - mha.apply({"params": donor}, inputs(19))).max() > 0.01
    trained = weights_of(operator)
    assert operator.transplant(fresh, operator, trained)["local"] is trained["local"]
    assert operator.transplant(fresh, sized(op("hyena_x"), 4), {}) is None


@pytest.mark.parametrize("conv", [True, False])
def test_cost(conv):
    operator = sized(op("linear", conv=conv), 4)
    cost, (m, n, d) = operator.cost(), (4, 15, 24)
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(shapes_of(operator)))
    assert cost.op_flops == 2 * 2 * (m + n) * 3 * 8 * 8 + 4 * (m + n) * d
    assert cost.featurizer_flops == 8 * (m + n) * d * d + conv * 2 * 9 * n * d


@pytest.mark.parametrize("scion", [op("linear"), op("linear", conv=False)], ids=str)
def test_recognised_from_its_tensors(scion):
    assert_exports(scion)


def test_the_feature_map_is_told_when_a_file_is_read():
    operator = made(op("linear", conv=False), SPEC)
    shapes = {key.name: (1,) for key in operator.torch_keys if not key.name.startswith("local")}
    assert operator.recognise(shapes, {"feature": "elu"}) == {"feature": "elu", "conv": False}


@pytest.mark.parametrize(
    ("options", "grid", "message"),
    [
        ({"feature": "gelu"}, (4, 4), "linear feature: got 'gelu', expected one of"),
        ({}, (0, 0), "linear conv: got True where there are no image tokens"),
    ],
)
def test_refuses(options, grid, message):
    with pytest.raises(BadInput, match=message):
        resolve(op("linear", **options), "mixer", dataclasses.replace(SPEC.sizes, grid=grid, text=3))
