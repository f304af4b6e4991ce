"""A DiT of two stages: which stage works on what, what conditions the decoder, and drawing with a kept encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.backbones.dit.frame import LabelEmbed
from graftax.backbones.embedders import FinalLayer, PatchEmbed, TimestepEmbed
from graftax.blocks import Context
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.cost import count_params
from graftax.models.stack import apply_stack
from graftax.models.stages import stages
from graftax.ops.base import call
from graftax.spec import Prediction
from graftax.surgery import apply_edit, compose, decouple, parse, repeat
from graftax.testing import assert_same_leaves, random_params, tiny_spec

SPEC = tiny_spec(depth=3, hidden_size=16, num_heads=2, learn_sigma=False).replace(
    prediction=Prediction("velocity", "data", variance=False)
)
MODEL = Model(SPEC, random_params(SPEC, jax.random.key(0)))
X = np.random.default_rng(0).standard_normal((2, 8, 8, 4), np.float32)
T, Y = np.array([0.1, 0.7], np.float32), np.array([0, 4])


@pytest.fixture(scope="module")
def student():
    return apply_edit(MODEL, decouple(2))[0]


def test_the_encoder_is_the_dit_and_conditions_the_decoder_by_token(student):
    """Against the two stages written out: DiT's first blocks; its last one on fresh tokens, under theirs."""
    params, plain = MODEL.params, SPEC.replace(program=SPEC.program[:2])
    tokens = call(PatchEmbed(16, 2), params["x_embedder"], X) + params["pos_embed"]
    time = call(TimestepEmbed(16), params["t_embedder"], jnp.asarray(T))
    vec = time + call(LabelEmbed(10, 16), params["y_embedder"], jnp.asarray(Y))
    run = {"plan": "unroll"}
    made = apply_stack(plain, params["blocks"], {"img": tokens}, Context(vec), **run)[0]["img"] + time[:, None]
    last = SPEC.replace(program=SPEC.program[2:])
    out = apply_stack(last, params["blocks"], {"img": tokens}, Context(made), **run)[0]["img"]
    expected = call(FinalLayer(2, 4, (4, 4)), params["final"], out, made)
    np.testing.assert_allclose(student(X, T, Y), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    two = stages(student.spec)
    encoder, decoder = two.prepare(student.params, "unroll")
    kept = two.encode(encoder, X, T, {"y": jnp.asarray(Y)})
    np.testing.assert_allclose(kept, made, rtol=1e-5, atol=1e-5 * np.abs(made).max())
    np.testing.assert_allclose(two.decode(decoder, X, kept), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_no_weight_changes_and_the_function_does(student):
    edit = parse("decouple(2)")
    assert (str(edit), edit) == ("decouple(2)", decouple(2))
    assert edit.effect(SPEC) == "changed"
    assert_same_leaves(MODEL.params, student.params)
    assert count_params(student.spec) == count_params(SPEC)
    assert [block.kind for block in student.spec.blocks] == ["ddt_encoder", "ddt_encoder", "ddt_decoder"]


@pytest.mark.slow
def test_it_draws_with_an_encoder_that_is_kept(student):
    drawn = {"sampler": "euler", "steps": 4, "cfg_scale": 1.5, "rng": jax.random.key(0)}
    images = graftax.sample(student, [1, 2], refresh=(0, 2), **drawn)
    assert images.shape == (2, 8, 8, 4)
    assert np.isfinite(images).all()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (decouple(0), r"decouple\(0\): of a program of 3 steps, expected 1\.\.2"),
        (decouple(3), r"decouple\(3\): of a program of 3 steps"),
        (compose(repeat(0, 3, 1), decouple(1)), "block 1 would run in both stages"),
        (compose(decouple(1), decouple(2)), "block 0 is of the kind 'ddt_encoder', expected 'dit'"),
        (parse("compose(replace(blocks[*].adaln, adaln_shared), decouple(1))"), "blocks of two stages share none"),
    ],
)
def test_what_cannot_be_parted_is_refused(edit, message):
    with pytest.raises(BadInput, match=message):
        apply_edit(MODEL, edit, jax.random.key(0))
