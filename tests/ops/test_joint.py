"""Joint attention, normed attention and rotary positions against their definitions in numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from joint_oracle import IMG, PLACES, RNG, ROPE, SIZES, TXT, assert_defined, attention, built, heads_of, turned

from graftax import ops
from graftax.errors import BadInput
from graftax.ops.base import call, shapes_of
from graftax.ops.rope import angles, rotate, tables
from graftax.spec import op
from graftax.testing import assert_same_leaves

JOINT = ["joint_mha", "joint_clear", "joint_linear", "joint_hyena_x"]


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize(("bias", "rope"), [("all", None), ("none", ROPE)])
def test_joint_attention_by_its_definition(norm, bias, rope):
    operator, params = built("joint_mha", qk_norm=norm, bias=bias)

    def mix(q, k, v):
        return attention(q, k, v) if rope is None else attention(turned(q, PLACES), turned(k, PLACES), v)

    assert_defined(operator, params, norm, mix, rope)


def test_a_text_without_an_answer():
    operator, params = built("joint_mha", qk_norm="rms", text_out=False)
    whole, _ = built("joint_mha", qk_norm="rms")
    assert "proj" not in params["txt"]
    out = call(operator, params, {"txt": TXT, "img": IMG}, rope=None)
    completed = {**params, "txt": {**params["txt"], "proj": params["img"]["proj"]}}
    np.testing.assert_allclose(out["img"], call(whole, completed, {"txt": TXT, "img": IMG}, rope=None)["img"], atol=2e-6)
    assert not np.asarray(out["txt"]).any()


@pytest.mark.parametrize(("bias", "norm"), [("all", "layer_affine"), ("in", "rms"), ("none", "rms"), ("all", "none")])
def test_normed_attention_by_its_definition(bias, norm):
    operator, params = built("mha_normed", qk_norm=norm, bias=bias)
    x = np.concatenate([TXT, IMG], axis=1)
    out = call(operator, params, x, rope=ROPE)
    q, k, v = heads_of(x, params, norm)
    mixed = attention(turned(q, PLACES), turned(k, PLACES), v)
    expected = mixed @ params["proj"]["kernel"] + params["proj"].get("bias", 0)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert ("bias" in params["qkv"], "bias" in params["proj"]) == (bias != "none", bias == "all")


@pytest.mark.parametrize(
    "options",
    [{}, {"qk_norm": "rms", "bias": "none"}, {"text_out": False, "qk_norm": "layer"}, {"qk_norm": "layer_affine"}],
)
def test_costs_count_every_parameter(options):
    alone = {name: value for name, value in options.items() if name != "text_out"}
    for kind, chosen in (("joint_mha", options), ("mha_normed", alone)):
        operator, params = built(kind, **chosen)
        assert operator.cost().params == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_joint_attention_takes_over_all_or_says_what_differs():
    operator, params = built("joint_mha", qk_norm="rms")
    assert_same_leaves(operator.transplant(shapes_of(operator), operator, params), params)
    for options, message in (
        ({}, "joint_mha qk_norm: got 'none', expected 'rms' as joint_mha has it"),
        ({"qk_norm": "rms", "bias": "none"}, "joint_mha bias: got 'none', expected 'all' as"),
        ({"qk_norm": "rms", "text_out": False}, "joint_mha text_out: got False, expected True as"),
    ):
        other, fresh = built("joint_mha", **options)
        with pytest.raises(BadInput, match=message):
            other.transplant(fresh, operator, params)
    assert operator.transplant(params, built("mha")[0], {}) is None


@pytest.mark.parametrize("text_out", [True, False])
@pytest.mark.parametrize("kind", JOINT)
def test_a_text_may_be_longer_or_shorter_than_the_models(kind, text_out):
    operator, params = built(kind, text_out=text_out)
    for m in (2, 8):
        streams = {"txt": RNG.standard_normal((2, m, 12)).astype(np.float32), "img": IMG}
        reads = dict.fromkeys(operator.reads)
        told = operator.clone(sizes=dataclasses.replace(SIZES, text=m))
        out, expected = (call(one, params, streams, **reads) for one in (operator, told))
        for name, stream in streams.items():
            assert out[name].shape == stream.shape
            np.testing.assert_allclose(out[name], expected[name], atol=1e-6)


@pytest.mark.parametrize("kind", JOINT)
def test_half_precision_stays_near(kind):
    operator, params = built(kind, **({"qk_norm": "rms"} if kind != "joint_hyena_x" else {}))
    inputs, reads = {"txt": TXT, "img": IMG}, {"rope": ROPE} if operator.reads else {}
    exact, half = (call(one, params, inputs, **reads) for one in (operator, operator.with_dtype(jnp.bfloat16)))
    for name, stream in half.items():
        assert stream.dtype == jnp.bfloat16
        assert jnp.abs(stream.astype(jnp.float32) - exact[name]).max() < 0.05 * jnp.abs(exact[name]).max()


def test_normed_attention_takes_over_projections():
    plain, weights = built("mha")
    grafted, fresh = built("mha_normed", qk_norm="none", bias="all")
    taken = grafted.transplant(fresh, plain, weights)
    x = np.concatenate([TXT, IMG], axis=1)
    np.testing.assert_array_equal(call(grafted, taken, x, rope=None), call(plain, weights, x))


@pytest.mark.parametrize("kind", ["mha", "swa", "clear", "linear", "mha_kv"])
def test_other_attentions_take_over_projections_without_biases(kind):
    """As AuraFlow's and Flux's single blocks have them: zeros stand for those."""
    donor, weights = built("mha_normed", qk_norm="none", bias="none")
    grafted, fresh = built(kind, **({"factor": 1} if kind == "mha_kv" else {}))
    taken = grafted.transplant(fresh, donor, weights)
    for name in ("qkv", "proj"):
        assert taken[name]["kernel"] is weights[name]["kernel"]
        assert not taken[name]["bias"].any()
    if kind == "mha":
        x = np.concatenate([TXT, IMG], axis=1)
        np.testing.assert_array_equal(call(grafted, taken, x), call(donor, weights, x, rope=None))


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
