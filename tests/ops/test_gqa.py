"""Grouped queries, alone and of two streams: against loops over heads, what they take over and give back, cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from joint_oracle import PLACES, ROPE, SIZES, STREAMS, assert_defined, attention, built, turned
from operator_checks import assert_exports, assert_gradients, made, weights_of

from graftax import ops
from graftax.errors import BadInput
from graftax.ops.base import shapes_of
from graftax.spec import op
from graftax.testing import assert_same_leaves, tiny_spec

SPEC = tiny_spec(hidden_size=24, num_heads=6)
X = np.random.default_rng(0).standard_normal((2, 16, 24), np.float32)


def definition(x, p, group):
    """Head by head in float64."""
    q, kv = (x.astype(np.float64) @ p[name]["kernel"] + p[name]["bias"] for name in ("q", "kv"))
    k, v = np.split(kv, 2, axis=-1)
    out = np.zeros_like(q)
    for head in range(6):
        mine, theirs = slice(4 * head, 4 * head + 4), slice(4 * (head // group), 4 * (head // group) + 4)
        weights = np.exp(q[..., mine] @ k[..., theirs].swapaxes(1, 2) / 2)
        out[..., mine] = weights / weights.sum(-1, keepdims=True) @ v[..., theirs]
    return out @ p["proj"]["kernel"] + p["proj"]["bias"]


@pytest.mark.parametrize("group", [1, 2, 6])
def test_equals_the_definition_at_its_cost(group):
    operator = made(op("gqa", group=group), SPEC)
    weights, n, d = weights_of(operator), 16, 24
    expected = definition(X, weights, group)
    assert np.abs(operator.apply({"params": weights}, X) - expected).max() < 1e-5 * np.abs(expected).max()
    cost = operator.cost()
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(weights))
    assert cost.op_flops == n * n * (4 * d + 2 * 6)
    assert cost.featurizer_flops == 2 * n * d * (2 * d + 2 * d // group)


def test_gradients_and_bfloat16():
    operator = made(op("gqa", group=3), SPEC)
    weights = weights_of(operator)
    assert_gradients(operator, weights, X, step=0.05)
    out, expected = operator.with_dtype(jnp.bfloat16).apply({"params": weights}, X), operator.apply({"params": weights}, X)
    assert out.dtype == jnp.bfloat16
    assert jnp.abs(out.astype(jnp.float32) - expected).max() < 0.02 * jnp.abs(expected).max()


def test_starts_from_the_means_of_heads():
    mha, operator, same = (made(one, SPEC) for one in (op("mha"), op("gqa", group=3), op("gqa", group=1)))
    donor = weights_of(mha)
    taken = operator.transplant({}, mha, donor)
    assert jax.tree.map(jnp.shape, taken) == jax.tree.map(jnp.shape, shapes_of(operator))
    values = donor["qkv"]["kernel"][:, 48:].reshape(24, 2, 3, 4)
    np.testing.assert_allclose(taken["kv"]["kernel"][:, 8:].reshape(24, 2, 4), values.mean(2), atol=1e-6)
    outs = [one.apply({"params": p}, X) for one, p in ((mha, donor), (same, same.transplant({}, mha, donor)))]
    np.testing.assert_allclose(*outs, atol=1e-5)
    assert operator.transplant({}, operator, taken) is taken
    assert operator.transplant({}, made(op("hyena_x"), SPEC), {}) is None


@pytest.mark.parametrize("kind", ["mha", "linear", "mha_normed"])
def test_other_attention_takes_it_over(kind):
    """As dense attention it computes the same."""
    operator, other = made(op("gqa", group=2), SPEC), made(op(kind), SPEC)
    weights = weights_of(operator)
    taken = other.transplant(weights_of(other), operator, weights)
    plain = {name: taken[name] for name in ("qkv", "proj")}
    dense, own = made(op("mha"), SPEC).apply({"params": plain}, X), operator.apply({"params": weights}, X)
    np.testing.assert_allclose(dense, own, atol=1e-5)


def test_recognised_from_its_tensors():
    assert_exports(op("gqa"))


@pytest.mark.parametrize(("options", "rope"), [({"qk_norm": "rms"}, ROPE), ({"bias": "none", "text_out": False}, None)])
def test_two_streams_equal_the_definition(options, rope):
    """The oracle gives each head its own copy of the keys and values that it shares."""
    operator, params = built("joint_gqa", **options)

    def mix(q, k, v):
        return attention(*((q, k) if rope is None else (turned(q, PLACES), turned(k, PLACES))), v)

    assert_defined(operator, params, options.get("qk_norm", "none"), mix, rope)
    cost = operator.cost()
    asking = 11 if operator.text_out else 6
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert cost.op_flops == 11 * asking * (4 * 12 + 2 * 2)
    assert cost.featurizer_flops == 2 * 11 * 12 * (12 + 2 * 6) + 2 * asking * 12 * 12


def test_two_streams_start_from_joint_attention_and_go_back():
    (mha, weights), (gqa, fresh) = (built(kind, qk_norm="rms") for kind in ("joint_mha", "joint_gqa"))
    taken = gqa.transplant(fresh, mha, weights)
    back = mha.transplant(weights, gqa, taken)
    for stream in STREAMS:
        shared = weights[stream]["qkv"]["kernel"][:, 12:].reshape(12, 2, 2, 6).mean(2)
        np.testing.assert_allclose(taken[stream]["kv"]["kernel"].reshape(12, 2, 6), shared, atol=1e-6)
        assert taken[stream]["proj"] is weights[stream]["proj"]
    outs = [one.apply({"params": p}, STREAMS, rope=ROPE) for one, p in ((gqa, taken), (mha, back))]
    for stream in STREAMS:
        np.testing.assert_allclose(outs[0][stream], outs[1][stream], atol=1e-5)
    assert_same_leaves(gqa.transplant(fresh, gqa, taken), taken)
    assert (gqa.start(gqa), gqa.start(mha)) == ("kept", "changed")


def test_refuses():
    for kind, role, sizes, group in (("gqa", "mixer", SPEC.sizes, 4), ("joint_gqa", "joint", SIZES, 0)):
        with pytest.raises(BadInput, match=f"{kind} group: got {group}, expected a divisor of the {sizes.heads} heads"):
            ops.resolve(op(kind, group=group), role, sizes)
