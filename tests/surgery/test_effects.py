"""What edits say of the function, and that it is so: kept, fitted in closed form, or changed."""

import jax
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.models import Model
from graftax.surgery import apply_edit, compose, parse
from graftax.testing import random_params, tiny_spec

SPEC = tiny_spec(depth=1, hidden_size=16, num_heads=2)
MODEL = Model(SPEC, random_params(SPEC, jax.random.key(0)))
RNG = jax.random.key(7)
X = np.random.default_rng(0).standard_normal((2, 8, 8, 4), np.float32)
T, Y = np.array([5, 400]), np.array([0, 4])


def difference(before, after):
    """Of the outputs, relative to the first's largest."""
    one, other = (np.asarray(model(X, T, Y)) for model in (before, after))
    return np.abs(one - other).max() / np.abs(one).max()


def step_by_step(before, after):
    """`difference` with every operation a program of its own, so that what is equal is so to the bit on any processor:
    compiled as one, two models may round differently where operations meet."""
    with jax.disable_jit():
        return difference(before, after)


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("replace(blocks[*].mlp, mlp(ratio=6.0), init=transplant)", 1e-5),  # copies of neurons add up in another order
        pytest.param("replace(blocks[*].norm, layer_norm(affine=true))", 0, marks=pytest.mark.slow),
        pytest.param("replace(blocks[*].norm, soft_norm(norm=layer))", 0, marks=pytest.mark.slow),
        pytest.param("replace(blocks[*].mixer, mha_rope)", 0, marks=pytest.mark.slow),
        pytest.param("replace(blocks[*].mixer, mha, init=transplant)", 0, marks=pytest.mark.slow),
        ("replace(blocks[*].mixer, sla(block=3, topk=1.0), init=transplant)", 1e-6),
        pytest.param("replace(blocks[*].mixer, gqa(group=1), init=transplant)", 1e-6, marks=pytest.mark.slow),
        ("replace(blocks[*].mlp, moe, init=transplant)", 1e-5),
        pytest.param("lora(blocks[*].mixer, rank=2)", 0, marks=pytest.mark.slow),
        ("rotary(blocks[*].mixer)", 0),
        pytest.param("place_norms(blocks[*].norm, pre, norm=rms, soft=true)", 0, marks=pytest.mark.slow),
        ("place_norms(blocks[*].norm, sandwich, norm=rms, soft=true)", 0),
        pytest.param("place_norms(blocks[*].norm, residual_post, norm=layer, soft=true)", 0, marks=pytest.mark.slow),
        ("place_norms(blocks[0].norm, post, norm=rms, soft=true)", 0),
        ("class_tokens(blocks[*].adaln, keep=true)", 0),
    ],
)
def test_what_keeps_the_function(text, most):
    student, report = apply_edit(MODEL, parse(text), RNG)
    assert (report.effect, str(report).splitlines()[-1]) == ("kept", "function            kept")
    assert (difference if most else step_by_step)(MODEL, student) <= most
    assert str(parse(text)) == student.meta.edits[-1]


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("replace(blocks[*].mlp, swiglu(ratio=4.0, bias=true), init=transplant)", 0.02),
        ("replace(blocks[*].adaln, adaln_lowrank(rank=12))", 0.3),
        ("replace(blocks[*].mlp, mlp_low_rank(rank=15), init=transplant)", 0.2),
    ],
)
def test_what_is_fitted_in_closed_form(text, most):
    student, report = apply_edit(MODEL, parse(text), RNG)
    assert (report.effect, str(report).splitlines()[-1][20:]) == ("fitted", "fitted in closed form, distillation refines it")
    assert 0 < difference(MODEL, student) < most


@pytest.mark.parametrize(
    "text",
    [
        "replace(blocks[*].norm, rms_norm)", "replace(blocks[*].mixer, mha_normed(qk_norm=rms), init=transplant)",
        "replace(blocks[*].mlp, swiglu(ratio=4.0, bias=true))", "replace(blocks[0].mlp, mlp, init=random)", "skip(0, 1)",
        "replace(blocks[*].mixer, sla(block=3, topk=0.4), init=transplant)", "drop(1)",
        "replace(blocks[*].mixer, gqa, init=transplant)", "replace(blocks[*].mixer, gated_delta, init=transplant)",
        "tie((0, 1))", "replace(blocks[*].norm, no_norm)", "replace(blocks[*].norm, soft_norm)",
        "place_norms(blocks[*].norm, post, norm=rms, soft=false)", "class_tokens(blocks[*].adaln, keep=false)",
    ],
)  # fmt: skip
def test_what_has_to_be_taught(text):
    assert parse(text).effect(SPEC) == "changed"


@pytest.mark.parametrize(
    ("text", "effect"),
    [
        ("replace(blocks[*].mlp, moe(experts=4, top=2), init=transplant)", "kept"),
        ("replace(blocks[*].mlp, mlp_low_rank(rank=4), init=transplant)", "fitted"),
        ("replace(blocks[*].adaln, adaln_shared_lowrank(rank=4))", "fitted"),
        ("replace(blocks[*].adaln, adaln, init=transplant)", "kept"),
        ("replace(blocks[*].mixer, mha_rope(qk_norm=rms))", "changed"),
    ],
)
def test_operators_say_what_their_start_does(text, effect):
    assert parse(text).effect(SPEC) == effect


def test_edits_together_do_what_the_worst_of_them_does():
    kept, fitted, changed = map(
        parse, ("lora(blocks[*].mixer, rank=2)", "replace(blocks[0].adaln, adaln_shared)", "reverse(0, 1)")
    )
    assert compose(kept, fitted).effect(SPEC) == "fitted"
    assert compose(fitted, changed, kept).effect(SPEC) == "changed"
    _, _, report = compose(kept, fitted)(SPEC, MODEL.params, RNG)
    assert report.effect == "fitted"


def test_a_swiglu_without_biases_has_no_start_in_an_mlp():
    with pytest.raises(BadInput, match=r"nothing of mlp\(ratio=4\.0\) fits swiglu"):
        apply_edit(MODEL, parse("replace(blocks[*].mlp, swiglu(ratio=4.0), init=transplant)"), RNG)


@pytest.mark.parametrize("norm", ["rms", "layer_affine"])
def test_scales_of_norms_of_queries_start_as_large_as_these_were(norm):
    """Of tokens whose channels have variance 1: root mean squares over heads."""
    student, _ = apply_edit(MODEL, parse(f"replace(blocks[0].mixer, mha_normed(qk_norm={norm}), init=transplant)"), RNG)
    mixer = student.params["blocks"]["00"]["mixer"]
    tokens = np.random.default_rng(1).standard_normal((20_000, 16))
    q = (tokens @ mixer["qkv"]["kernel"] + mixer["qkv"]["bias"]).reshape(-1, 3, 2, 8)[:, 0]
    np.testing.assert_allclose(mixer["q_norm"]["scale"], np.sqrt(np.square(q).mean((0, 1))), rtol=0.03)
