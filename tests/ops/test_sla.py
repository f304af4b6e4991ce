"""Sparse-linear attention, alone and of two streams: against loops over blocks, strips, memory, cost, what it starts as."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from joint_oracle import PLACES, ROPE, STREAMS, assert_counted, assert_defined, built, turned
from operator_checks import assert_exports, assert_gradients, weights_of

from graftax.errors import BadInput
from graftax.ops import build, resolve, sla
from graftax.spec import op
from graftax.testing import assert_same_leaves, tiny_spec

SIZES = dataclasses.replace(tiny_spec(hidden_size=24, num_heads=3).sizes, grid=(4, 5), text=2)
X = np.random.default_rng(0).standard_normal((2, 22, 24), np.float32)
PHI = {
    "relu": lambda a: np.maximum(a, 0),
    "elu": lambda a: np.where(a > 0, a + 1, np.exp(np.minimum(a, 0))),
    "softmax": lambda a: np.exp(a) / np.exp(a).sum(-1, keepdims=True),
}


def sized(**options):
    kind = options.pop("kind", "sla")
    return build(resolve(op(kind, **options), "mixer", SIZES), SIZES)


def mixed(q, k, v, branch, block, topk, feature, covers):
    """(b, n, h, k) each, in float64: image by image, head by head, block by block."""
    out = np.zeros_like(q)
    cuts = [slice(i, i + block) for i in range(0, k.shape[1], block)]
    count = max(1, int(topk * len(cuts)))
    for image, head in np.ndindex(q.shape[0], q.shape[2]):
        qs, ks, vs = (a[image, :, head] for a in (q, k, v))
        for rows in (slice(i, i + block) for i in range(0, q.shape[1], block)):
            scores = [qs[rows].mean(0) @ (ks[cut].mean(0) - ks.mean(0)) for cut in cuts]
            near = [cuts[j] for j in np.argsort(scores)[::-1][:count]]
            seen, values = (np.concatenate([a[cut] for cut in near]) for a in (ks, vs))
            weights = np.exp(qs[rows] @ seen.T / np.sqrt(q.shape[-1]))
            sparse = weights / weights.sum(-1, keepdims=True) @ values
            rest = np.concatenate([np.arange(22)[:0], *(np.r_[cut] for cut in cuts if covers == "all" or cut not in near)])
            rest = rest[rest < k.shape[1]].astype(int)
            weights = PHI[feature](qs[rows]) @ PHI[feature](ks[rest]).T
            linear = weights @ vs[rest] / np.maximum(weights.sum(-1, keepdims=True), 1e-300)
            out[image, rows, head] = sparse + linear @ branch["kernel"] + branch["bias"]
    return out


@pytest.fixture
def row_by_row(monkeypatch):
    monkeypatch.setattr(sla, "DENSE_BELOW", dict.fromkeys(sla.DENSE_BELOW, 0))


def assert_equals_loops(options):
    operator = sized(**options)
    weights = jax.tree.map(np.asarray, weights_of(operator))
    qkv = X.astype(np.float64) @ weights["qkv"]["kernel"] + weights["qkv"]["bias"]
    q, k, v = np.moveaxis(qkv.reshape(2, 22, 3, 3, 8), 2, 0)
    expected = mixed(q, k, v, weights["proj_l"], **{"feature": "softmax", "covers": "all", **options}).reshape(2, 22, 24)
    expected = expected @ weights["proj"]["kernel"] + weights["proj"]["bias"]
    out = jax.jit(operator.apply)({"params": weights}, X)
    assert np.abs(out - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "options",
    [
        {"block": 4, "topk": 0.4}, {"block": 4, "topk": 0.4, "covers": "rest"}, {"block": 5, "topk": 0.1, "feature": "relu"},
        {"block": 11, "topk": 1.0, "covers": "rest", "feature": "elu"}, {"block": 64, "topk": 0.2},
    ],
    ids=str,
)  # fmt: skip
def test_equals_the_definition(options):
    assert_equals_loops(options)


@pytest.mark.usefixtures("row_by_row")
def test_row_by_row_too():
    assert_equals_loops({"block": 4, "topk": 0.4, "covers": "rest"})


def test_no_pass_holds_all_pairs():
    def temporaries(n):
        q = jax.ShapeDtypeStruct((1, n, 1, 4), jnp.float32)
        chosen = jax.ShapeDtypeStruct((1, 1, n // 64, 4), jnp.int32)
        loss = lambda q, k, v, chosen: sla.sparse_attention(q, k, v, chosen, 64).sum()  # noqa: E731
        run = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        return run.lower(q, q, q, chosen).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(2**15) < 2.2 * temporaries(2**14) < 4 * 2**28 / 8


def test_gradients_and_bfloat16():
    operator = sized(block=4, topk=0.4, covers="rest")
    weights = weights_of(operator)
    assert_gradients(operator, weights, X[:1], step=1e-2, rtol=5e-3)
    out, expected = (jax.jit(one.apply)({"params": weights}, X) for one in (operator.with_dtype(jnp.bfloat16), operator))
    assert out.dtype == jnp.bfloat16
    # Where two blocks matter alike, rounding chooses the other one: most numbers, not all.
    error = jnp.abs(out.astype(jnp.float32) - expected) / jnp.abs(expected).max()
    assert (error < 0.03).mean() > 0.95


def test_starts_as_attention_where_all_blocks_are_kept():
    mha, whole, sparse = sized(kind="mha"), sized(block=4, topk=1.0), sized(block=4, topk=0.4)
    donor, fresh = weights_of(mha), jax.jit(whole.init)(jax.random.key(0), X)["params"]
    assert not any(leaf.any() for leaf in fresh["proj_l"].values())
    taken = whole.transplant(fresh, mha, donor)
    dense, same, near = (jax.jit(one.apply)({"params": p}, X) for one, p in ((mha, donor), (whole, taken), (sparse, taken)))
    np.testing.assert_allclose(same, dense, atol=1e-6)
    assert abs(near - dense).max() > 0.01
    trained = weights_of(sparse)
    assert whole.transplant(fresh, sparse, trained)["proj_l"] is trained["proj_l"]


def test_cost_and_names():
    operator = sized(block=4, topk=0.4)
    cost, (n, d) = operator.cost(), (22, 24)
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(weights_of(operator)))
    linear = 2 * 2 * n * d * 8 + 4 * n * d + 2 * n * d * 8
    assert cost.op_flops == n * 8 * (4 * d + 2 * 3) + 6 * 6 * 2 * d + 2 * n * d + linear
    assert cost.featurizer_flops == 8 * n * d * d
    assert_exports(op("sla"))


@pytest.mark.parametrize(("options", "rope"), [({"qk_norm": "rms"}, ROPE), ({"text_out": False, "covers": "rest"}, None)])
def test_two_streams_equal_the_definition(options, rope):
    operator, params = built("joint_sla", block=3, topk=0.5, **options)

    def mix(q, k, v):
        q, k = (q, k) if rope is None else (turned(q, PLACES), turned(k, PLACES))
        asking = slice(0 if operator.text_out else 5, None)
        out = mixed(q[:, asking], k, v, params["proj_l"], 3, 0.5, "softmax", options.get("covers", "all"))
        return np.pad(out, ((0, 0), (11 - out.shape[1], 0), (0, 0), (0, 0))).reshape(2, 11, 12)

    assert_defined(operator, params, options.get("qk_norm", "none"), mix, rope)


def test_two_streams_start_as_attention_and_their_cost():
    (mha, weights), (operator, _) = built("joint_mha", qk_norm="rms"), built("joint_sla", qk_norm="rms", block=4, topk=1.0)
    fresh = jax.jit(operator.init)(jax.random.key(0), STREAMS, rope=None)["params"]
    taken = operator.transplant(fresh, mha, weights)
    assert_same_leaves({name: taken[name] for name in STREAMS}, {name: weights[name] for name in STREAMS})
    outs = [jax.jit(one.apply)({"params": p}, STREAMS, rope=ROPE) for one, p in ((operator, taken), (mha, weights))]
    for name in STREAMS:
        np.testing.assert_allclose(outs[0][name], outs[1][name], atol=1e-5)
    assert (operator.start(mha), built("joint_sla", block=4, topk=0.5)[0].start(mha)) == ("kept", "changed")
    small, _ = built("joint_sla", block=3, topk=0.5, text_out=False)
    linear = 2 * (6 + 11) * 12 * 6 + (3 * 6 + 11) * 12 + 2 * 6 * 12 * 6
    assert_counted(small, 6 * 6 * (4 * 12 + 2 * 2) + 2 * 4 * 2 * 12 + 17 * 12 + linear)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 0}, "sla block: got 0, expected 1 or more"),
        ({"topk": 1.5}, "sla topk: got 1.5, expected a share above 0 and up to 1"),
        ({"covers": "none"}, "sla covers: got 'none', expected one of"),
        ({"feature": "gelu"}, "sla feature: got 'gelu', expected one of"),
    ],
)
def test_refuses(options, message):
    for kind, role in (("sla", "mixer"), ("joint_sla", "joint")):
        with pytest.raises(BadInput, match=message):
            resolve(op(kind, **options), role, SIZES)
