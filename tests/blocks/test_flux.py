"""The blocks of Flux: what selectors name in them, which mixers a block of one stream takes, and that nothing else moves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.backbones.flux import flux_spec
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.cost import count_params
from graftax.models.stack import tap_names
from graftax.ops.mlp import gelu
from graftax.ops.norms import layer_norm
from graftax.surgery import graft, replace, select
from graftax.testing import assert_same_leaves, random_params

SPEC = flux_spec(input_size=8, hidden_size=16, num_heads=2, double=2, single=2, text_width=6, text_tokens=3, pooled_width=4)
SLOW = pytest.mark.slow
KEY, RNG = jax.random.key(0), np.random.default_rng(0)
X, T = RNG.standard_normal((2, 8, 8, 16), np.float32), np.array([0.1, 0.9], np.float32)
COND = {"text": RNG.standard_normal((2, 3, 6), np.float32), "pooled": RNG.standard_normal((2, 4), np.float32)}


@functools.cache
def model():
    return Model(SPEC, random_params(SPEC, KEY))


@functools.cache
def taps():
    return model().apply(X, T, capture=tap_names(SPEC), **COND)[1]


@pytest.mark.parametrize(
    ("selector", "sites"),
    [
        ("double[1].img/mlp", ["blocks[1].img/mlp"]),
        ("double[*].mlp", [f"blocks[{i}].{name}/mlp" for i in (0, 1) for name in ("img", "txt")]),
        ("single[-1].mixer", ["blocks[3].mixer"]),
        ("blocks[*].mixer", ["blocks[2].mixer", "blocks[3].mixer"]),
        ("double[0].norm", [f"blocks[0].{name}/norm{i}" for name in ("img", "txt") for i in (1, 2)]),
        ("double[:].attn", ["blocks[0].attn", "blocks[1].attn"]),
        ("single[0].norm", ["blocks[2].norm"]),
    ],
)
def test_selectors(selector, sites):
    assert [str(site) for site in select(selector, SPEC)] == sites


def test_taps_lie_where_the_equations_say():
    found = taps()
    joined = {name: np.concatenate([found[name]["txt"], found[name]["img"]], axis=2) for name in ("block/in", "block/out")}
    np.testing.assert_array_equal(found["mixer/in"], found["mlp/in"])  # side by side
    assert found["mixer/in"].shape == (2, 2, 3 + 16, 16)
    change = joined["block/out"][2:] - joined["block/in"][2:]  # (2, b, m + n, d), of the single blocks
    added = found["mixer/out"] + found["mlp/out"]
    gates = change / added
    np.testing.assert_allclose(gates, np.broadcast_to(gates[:, :, :1], gates.shape), rtol=2e-2, atol=2e-2)
    assert jax.tree.map(jnp.shape, found["attn/out"]) == {"txt": (2, 2, 3, 16), "img": (2, 2, 16, 16)}


@pytest.mark.parametrize("stream", ["img", "txt"])
def test_a_block_of_two_streams_by_hand(stream):
    """The second half of a stream, from the attention's answer on."""
    found, weights = taps(), model().params["blocks"]["01"][stream]
    vec = _vec()
    u = jax.nn.silu(vec) @ weights["adaln"]["kernel"] + weights["adaln"]["bias"]
    _, _, gate, shift, scale, gate_mlp = np.split(np.asarray(u)[:, None], 6, axis=-1)
    x = found["block/in"][stream][1] + gate * found["attn/out"][stream][1]
    v = layer_norm(x) * (1 + scale) + shift
    np.testing.assert_allclose(found[f"{stream}/mlp/in"][1], v, rtol=1e-4, atol=1e-4)
    mlp = weights["mlp"]
    y = gelu(v @ mlp["fc1"]["kernel"] + mlp["fc1"]["bias"]) @ mlp["fc2"]["kernel"] + mlp["fc2"]["bias"]
    np.testing.assert_allclose(found["block/out"][stream][1], x + gate_mlp * y, rtol=1e-4, atol=2e-4)


def _vec():
    from graftax.backbones.flux import BACKBONE

    return BACKBONE.vec(SPEC, model().params, jnp.asarray(T), jax.tree.map(jnp.asarray, COND))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("hyena_x", {"kernel": 4}), ("swa", {"window": 2}), ("mamba2", {}), ("mha", {}),
        pytest.param("swa_2d_normed", {"window": 1, "bias": "in"}, marks=SLOW),
        *(pytest.param(kind, {}, marks=SLOW) for kind in ("hyena_long", "hyena_se", "hyena_2d", "swa_2d", "natten")),
    ],
)  # fmt: skip
def test_mixers_of_sequences_fit_a_block_of_one_stream(kind, options):
    student = graft(model(), replace("single[-1].mixer", kind, init="random", **options), KEY)
    assert student.spec.blocks[3]["mixer"].kind == kind
    assert_same_leaves(model().params, student.params, ["blocks/03/mixer"])
    assert count_params(student.spec) == sum(leaf.size for leaf in jax.tree.leaves(student.params))
    out, found = student.apply(X, T, capture=("mixer/in", "mixer/out", "block/out"), **COND)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(found["mixer/in"], taps()["mixer/in"], rtol=1e-4, atol=1e-4)  # what came before stays
    assert np.abs(found["mixer/out"][1] - taps()["mixer/out"][1]).max() > 1e-2
    words = COND["text"][:, :2]  # a text of another length
    assert np.isfinite(student(X, T, text=words, pooled=COND["pooled"])).all()


@pytest.mark.parametrize(("kind", "options"), [("dico", {}), ("mha_kv", {"factor": 2}), ("mamba2", {"scan": "cross"})])
def test_mixers_of_the_image_alone_do_not(kind, options):
    with pytest.raises(BadInput, match="works on the image's grid alone, got 3 tokens of text with it"):
        graft(model(), replace("single[0].mixer", kind, **options), KEY)


def test_operators_of_a_stream_see_its_tokens_alone():
    student = graft(model(), replace("double[0].img/mlp", "mlp_hyena_x", init="random"), KEY)
    assert np.isfinite(student(X, T, **COND)).all()
    with pytest.raises(BadInput, match="role channel, expected one with the role joint"):
        graft(model(), replace("double[0].attn", "mlp"), KEY)


def test_modulations_of_one_number_of_parts_can_be_shared():
    student = graft(model(), replace("double[*].img/adaln", "adaln_shared"), KEY)
    assert np.isfinite(student(X, T, **COND)).all()
    with pytest.raises(BadInput, match="adaln_shared: slots of 96 and of 48 features"):
        graft(student, replace("single[*].adaln", "adaln_shared"), KEY)
