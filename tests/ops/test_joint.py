"""Joint attention, normed attention and rotary positions against their definitions in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax import ops
from graftax.errors import BadInput
from graftax.ops.base import call, shapes_of
from graftax.ops.rope import angles, rotate, tables
from graftax.spec import Sizes, op

SIZES = Sizes(12, 2, 6, (2, 3), text=5)
RNG = np.random.default_rng(0)
TXT, IMG = (RNG.standard_normal((2, t, 12)).astype(np.float32) for t in (5, 6))
PLACES = np.array([(0, 0)] * 5 + [(i, j) for i in range(2) for j in range(3)], float)
ROPE = tables(PLACES, (2, 4))


def built(kind, **options):
    spec = ops.resolve(op(kind, **options), ops.operator_class(kind).role, SIZES)
    operator = ops.build(spec, SIZES)
    keys = iter(jax.random.split(jax.random.key(1), 99))
    params = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape) * 0.5, shapes_of(operator))
    return operator, jax.tree.map(np.asarray, params)


def normed(x, norm, scale=None):
    if norm == "rms":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale
    if norm == "layer":
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x


def turned(x, places):
    """As complex numbers: channel pairs of the first axis, then of the second."""
    rates = [places[:, :1] * 1.0, places[:, 1:] * 10_000.0 ** (-np.arange(2) * 2 / 4)]
    turn = np.exp(1j * np.concatenate(rates, axis=1))[:, None]
    z = (x[..., ::2] + 1j * x[..., 1::2]) * turn
    return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)


def heads_of(x, p, norm):
    qkv = x @ p["qkv"]["kernel"] + p["qkv"].get("bias", 0)
    q, k, v = (part.reshape(*x.shape[:2], 2, 6) for part in np.split(qkv.astype(np.float64), 3, axis=-1))
    scales = (p.get(f"{name}_norm", {}).get("scale") for name in "qk")
    return *(normed(part, norm, scale) for part, scale in zip((q, k), scales, strict=True)), v


def attention(q, k, v):
    logits = np.einsum("bqhk,bmhk->bhqm", q, k) / np.sqrt(6)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = np.einsum("bhqm,bmhk->bqhk", weights / weights.sum(-1, keepdims=True), v)
    return mixed.reshape(*mixed.shape[:2], -1)


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize(("bias", "rope"), [("all", None), ("none", ROPE)])
def test_joint_attention_by_its_definition(norm, bias, rope):
    operator, params = built("joint_mha", qk_norm=norm, bias=bias)
    out = call(operator, params, {"txt": TXT, "img": IMG}, rope=rope)
    parts = [heads_of(x, params[name], norm) for name, x in (("txt", TXT), ("img", IMG))]
    q, k, v = (np.concatenate(both, axis=1) for both in zip(*parts, strict=True))
    if rope is not None:
        q, k = turned(q, PLACES), turned(k, PLACES)
    mixed = attention(q, k, v)
    for name, rows in (("txt", slice(0, 5)), ("img", slice(5, None))):
        proj = params[name]["proj"]
        np.testing.assert_allclose(out[name], mixed[:, rows] @ proj["kernel"] + proj.get("bias", 0), atol=1e-5)


def test_a_text_without_an_answer():
    operator, params = built("joint_mha", qk_norm="rms", text_out=False)
    whole, _ = built("joint_mha", qk_norm="rms")
    assert "proj" not in params["txt"]
    out = call(operator, params, {"txt": TXT, "img": IMG}, rope=None)
    completed = {**params, "txt": {**params["txt"], "proj": params["img"]["proj"]}}
    np.testing.assert_allclose(out["img"], call(whole, completed, {"txt": TXT, "img": IMG}, rope=None)["img"], atol=2e-6)
    assert not np.asarray(out["txt"]).any()


@pytest.mark.parametrize("bias", ["all", "in", "none"])
def test_normed_attention_by_its_definition(bias):
    operator, params = built("mha_normed", qk_norm="rms", bias=bias)
    x = np.concatenate([TXT, IMG], axis=1)
    out = call(operator, params, x, rope=ROPE)
    q, k, v = heads_of(x, params, "rms")
    mixed = attention(turned(q, PLACES), turned(k, PLACES), v)
    expected = mixed @ params["proj"]["kernel"] + params["proj"].get("bias", 0)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert ("bias" in params["qkv"], "bias" in params["proj"]) == (bias != "none", bias == "all")


@pytest.mark.parametrize("options", [{}, {"qk_norm": "rms", "bias": "none"}, {"text_out": False, "qk_norm": "layer"}])
def test_costs_count_every_parameter(options):
    alone = {name: value for name, value in options.items() if name != "text_out"}
    for kind, chosen in (("joint_mha", options), ("mha_normed", alone)):
        operator, params = built(kind, **chosen)
        assert operator.cost().params == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_normed_attention_takes_over_projections():
    plain, weights = built("mha")
    grafted, fresh = built("mha_normed", qk_norm="none", bias="all")
    taken = grafted.transplant(fresh, plain, weights)
    x = np.concatenate([TXT, IMG], axis=1)
    np.testing.assert_array_equal(call(grafted, taken, x, rope=None), call(plain, weights, x))


def test_rotation_keeps_lengths_and_sees_distances_alone():
    x = jnp.asarray(RNG.standard_normal((1, 11, 2, 6)), jnp.float32)
    out = rotate(x, ROPE)
    np.testing.assert_allclose(jnp.linalg.norm(out, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(out[:, :5], x[:, :5])  # text stands at the origin
    moved = rotate(x, tables(PLACES + 3, (2, 4)))
    dots = [jnp.einsum("bqhk,bmhk->bhqm", a, a) for a in (out, moved)]
    np.testing.assert_allclose(*dots, atol=1e-4)


def test_bad_options_and_axes_are_named():
    with pytest.raises(BadInput, match=r"joint_mha qk_norm: got 'rmz', expected .*did you mean 'rms'"):
        ops.resolve(op("joint_mha", qk_norm="rmz"), "joint", SIZES)
    with pytest.raises(BadInput, match=r"mha_normed bias: got 'some'"):
        ops.resolve(op("mha_normed", bias="some"), "mixer", SIZES)
    with pytest.raises(BadInput, match=r"rotary axes: got \(3, 4\)"):
        angles(PLACES, (3, 4))
