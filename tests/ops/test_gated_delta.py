"""The gated delta rule: chunks against one token after the other, its start as linear attention, alone and joint."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from joint_oracle import PLACES, ROPE, STREAMS, assert_counted, assert_defined, built, turned
from operator_checks import assert_exports, assert_gradients, weights_of

from graftax.errors import BadInput
from graftax.ops import build, resolve
from graftax.ops.delta import delta_chunked, delta_flops, unit_inverse
from graftax.ops.mamba2 import SCANS
from graftax.spec import op
from graftax.testing import assert_same_leaves, tiny_spec

SIZES = dataclasses.replace(tiny_spec(hidden_size=24, num_heads=3).sizes, grid=(3, 5))
X = np.random.default_rng(0).standard_normal((2, 15, 24), np.float32)


def sized(kind="gated_delta", text=0, **options):
    sizes = dataclasses.replace(SIZES, text=text)
    return build(resolve(op(kind, **options), "mixer", sizes), sizes)


def one_by_one(q, k, v, plain_q, plain_k, log_a, erase):
    """The definition, in float64, as the paper writes it for the state; what is read of state and sums, token by token."""
    read, weights = np.zeros(v.shape), np.zeros(v.shape[:3])
    for image, head in np.ndindex(v.shape[0], v.shape[2]):
        state, total = np.zeros((v.shape[3], k.shape[3])), np.zeros(k.shape[3])
        for t in range(v.shape[1]):
            at = image, t, head
            length = np.linalg.norm(k[at])
            unit = k[at] / length if length else k[at]
            a = np.exp(log_a[at])
            state = a * state @ (np.eye(len(unit)) - erase[at] * np.outer(unit, unit)) + length * np.outer(v[at], unit)
            total = a * total + plain_k[at]
            read[at], weights[at] = state @ q[at], total @ plain_q[at]
    return read, weights


def tokens(n, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    q, k, v, plain_q, plain_k = (rng.standard_normal((2, n, 2, 6)) for _ in range(5))
    k[:, 3] = 0
    log_a, erase = -scale * rng.random((2, n, 2)) ** 4, rng.random((2, n, 2))
    return q, k, v, plain_q, plain_k, log_a, erase


@pytest.mark.parametrize(("n", "chunk", "scale"), [(70, 32, 1.0), (21, 5, 30.0), (5, 32, 0.0)])
def test_chunks_equal_one_token_after_the_other(n, chunk, scale):
    given = tokens(n, scale)
    found = jax.jit(delta_chunked, static_argnums=1)(tuple(map(jnp.float32, given)), chunk)
    for ours, expected in zip(found, one_by_one(*given), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_gradients_of_chunks_are_those_of_one():
    given = tuple(map(jnp.float32, tokens(21)))

    def loss(given, chunk):
        return sum(jnp.square(part).sum() for part in delta_chunked(given, chunk))

    several, one = (jax.jit(jax.grad(loss), static_argnums=1)(given, chunk) for chunk in (8, 32))
    for ours, expected in zip(several, one, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_chunks_equal_it_at_length_with_keys_that_repeat():
    """A thousand writes of four keys, fully erased each time: the triangular systems are as coupled as they can be."""
    given = list(tokens(1000, 0.01))
    given[1] = np.tile(given[1][:, 4:8], (1, 250, 1, 1))
    given[6] = np.ones_like(given[6])
    for ours, expected in zip(jax.jit(delta_chunked)(tuple(map(jnp.float32, given))), one_by_one(*given), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_it_is_the_papers_rule_where_writing_and_erasing_are_one():
    """S_t = S_{t-1} a (I - b k k^T) + b v k^T, in the other order: first the delta, then what is added."""
    q, k, v, plain_q, plain_k, log_a, beta = tokens(9)
    k /= np.maximum(np.linalg.norm(k, axis=-1, keepdims=True), 1e-9)
    found, _ = delta_chunked(tuple(map(jnp.float32, (q, k, beta[..., None] * v, plain_q, plain_k, log_a, beta))))
    state = np.zeros((2, 2, 6, 6))
    for t in range(9):
        state *= np.exp(log_a[:, t])[..., None, None]
        delta = beta[:, t][..., None] * (v[:, t] - np.einsum("bhck,bhk->bhc", state, k[:, t]))
        state += delta[..., None] * k[:, t][..., None, :]
        np.testing.assert_allclose(found[:, t], np.einsum("bhck,bhk->bhc", state, q[:, t]), atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_unit_inverse(size):
    lower = np.tril(np.ones((size, size), np.float32), -1)  # whose powers have entries of up to 3e8
    expected = np.linalg.inv(lower.astype(np.float64) + np.eye(size))
    inverse, back = jax.vjp(jax.jit(unit_inverse), lower)
    np.testing.assert_allclose(inverse, expected, atol=1e-6)
    g = np.random.default_rng(0).standard_normal((size, size), np.float32)
    _, forward = jax.jvp(unit_inverse, (lower,), (g,))
    np.testing.assert_allclose(forward, -expected @ np.tril(g, -1) @ expected, atol=1e-4)
    np.testing.assert_allclose(back(g)[0], -np.tril(expected.T @ g @ expected.T, -1), atol=1e-4)


def definition(q, k, v, gates, orders, grid):
    """(b, n, h, k) features and values, all passes in float64: every other one is the way back."""
    gates = np.maximum(gates, 0)
    given = q, k, v, q, k, -gates[..., : v.shape[2]], np.tanh(gates[..., v.shape[2] :])
    out, weights = np.zeros(v.shape), np.zeros(v.shape[:3])
    for by_columns, reverse in orders:
        index = np.arange(v.shape[1])
        index = index.reshape(grid).T.ravel() if by_columns else index
        index = index[::-1] if reverse else index
        read, total = one_by_one(*(a[:, index] for a in given))
        out[:, index] += read
        weights[:, index] += total
        if reverse:
            own = (q * k).sum(-1)
            out, weights = out - own[..., None] * v, weights - own
    return out / (weights[..., None] + 1e-15)


@pytest.mark.parametrize("scan", [*SCANS])
def test_equals_the_definition(scan):
    operator = sized(scan=scan, conv=False, feature="elu")
    weights = jax.tree.map(np.asarray, weights_of(operator))
    p = jax.tree.map(np.float64, weights)
    q, k, v = np.moveaxis((X @ p["qkv"]["kernel"] + p["qkv"]["bias"]).reshape(2, 15, 3, 3, 8), 2, 0)
    q, k = (np.where(a > 0, a + 1, np.exp(np.minimum(a, 0))) for a in (q, k))
    mixed = definition(q, k, v, X @ p["gates"]["kernel"] + p["gates"]["bias"], SCANS[scan], (3, 5))
    expected = mixed.reshape(2, 15, 24) @ p["proj"]["kernel"] + p["proj"]["bias"]
    out = jax.jit(operator.apply)({"params": weights}, X)
    assert np.abs(out - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize(("scan", "text"), [("bidirectional", 4), pytest.param("cross", 0, marks=pytest.mark.slow)])
def test_starts_as_linear_attention(scan, text):
    linear, operator = sized("linear", text), sized(text=text, scan=scan)
    x = np.random.default_rng(1).standard_normal((2, text + 15, 24), np.float32)
    donor, fresh = weights_of(linear), jax.jit(operator.init)(jax.random.key(0), x)["params"]
    assert not any(leaf.any() for leaf in fresh["gates"].values())
    taken = operator.transplant(fresh, linear, donor)
    outs = [jax.jit(one.apply)({"params": p}, x) for one, p in ((operator, taken), (linear, donor))]
    np.testing.assert_allclose(*outs, atol=2e-6 * np.abs(outs[1]).max())
    assert (operator.start(linear), sized(scan="raster").start(linear)) == ("kept", "changed")
    slopes = jax.jit(jax.grad(lambda p: jnp.square(operator.apply({"params": p}, x)).sum()))(taken)["gates"]
    assert all(jnp.abs(leaf).min() > 0 for leaf in slopes.values()), "and learns from there"


def test_gradients_and_bfloat16():
    operator = sized(feature="elu")
    weights = weights_of(operator)
    assert_gradients(operator, weights, X[:1], step=5e-3, rtol=1e-2)
    out, expected = (jax.jit(one.apply)({"params": weights}, X) for one in (operator.with_dtype(jnp.bfloat16), operator))
    assert out.dtype == jnp.bfloat16
    assert jnp.abs(out.astype(jnp.float32) - expected).max() < 0.04 * jnp.abs(expected).max()


def test_cost_and_names():
    operator = sized(scan="cross", conv=False)
    cost, (n, d) = operator.cost(), (15, 24)
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(weights_of(operator)))
    assert cost.op_flops == 4 * n * 3 * (10 * n * 8 + 4 * n * n * 3)  # one chunk, and so no state
    assert delta_flops(30, 3, 8, chunk=n) == 2 * n * 3 * (10 * n * 8 + 6 * 8 * 8 + 4 * n * n * 3 + 4 * 8)
    assert cost.featurizer_flops == 8 * n * d * d + 2 * n * d * 6
    for scion in (op("gated_delta"), op("gated_delta", conv=False)):
        assert_exports(scion)


@pytest.mark.parametrize(("options", "rope"), [({"qk_norm": "rms", "feature": "elu"}, ROPE), ({"text_out": False}, None)])
def test_two_streams_equal_the_definition(options, rope):
    operator, params = built("joint_gated_delta", **options)
    parts = [STREAMS[s] @ params[f"{s}_gates"]["kernel"] + params[f"{s}_gates"]["bias"] for s in ("txt", "img")]
    gates = np.maximum(np.concatenate(parts, axis=1).astype(np.float64), 0)
    phi = {"relu": lambda a: np.maximum(a, 0), "elu": lambda a: np.where(a > 0, a + 1, np.exp(np.minimum(a, 0)))}

    def mix(q, k, v):
        q, k = (phi[options.get("feature", "relu")](a) for a in (q, k))
        placed = (q, k) if rope is None else (turned(q, PLACES), turned(k, PLACES))
        given = *placed, v, q, k, -gates[..., :2], np.tanh(gates[..., 2:])
        there, back = one_by_one(*given), one_by_one(*(a[:, ::-1] for a in given))
        own, mine = (np.prod(pair, axis=0).sum(-1) for pair in (placed, (q, k)))
        out, weights = there[0] + back[0][:, ::-1] - own[..., None] * v, there[1] + back[1][:, ::-1] - mine
        return (out / np.maximum(weights, 1e-15)[..., None]).reshape(2, 11, 12)

    assert_defined(operator, params, options.get("qk_norm", "none"), mix, rope)


def test_two_streams_start_as_joint_linear_attention_and_their_cost():
    (linear, weights), (operator, _) = built("joint_linear", qk_norm="rms"), built("joint_gated_delta", qk_norm="rms")
    fresh = jax.jit(operator.init)(jax.random.key(0), STREAMS, rope=None)["params"]
    taken = operator.transplant(fresh, linear, weights)
    assert_same_leaves({name: taken[name] for name in STREAMS}, weights)
    outs = [jax.jit(one.apply)({"params": p}, STREAMS, rope=ROPE) for one, p in ((operator, taken), (linear, weights))]
    for name in STREAMS:
        np.testing.assert_allclose(outs[0][name], outs[1][name], atol=1e-5)
    assert (operator.start(linear), operator.start(built("joint_mha")[0])) == ("kept", "changed")
    assert_counted(operator, 2 * delta_flops(11, 2, 6), 2 * 11 * 12 * 4)


def test_refuses():
    with pytest.raises(BadInput, match="gated_delta scan: got 'spiral', expected one of"):
        sized(scan="spiral")
    with pytest.raises(BadInput, match="gated_delta with scan 'cross': works on the image's grid alone"):
        sized(text=3, scan="cross")
