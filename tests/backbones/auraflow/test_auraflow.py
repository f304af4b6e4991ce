"""The backbone: what it takes and refuses, images of any size; and that what is generic goes with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.backbones.auraflow import BACKBONE, auraflow_spec
from graftax.backbones.auraflow.frame import middle
from graftax.errors import BadInput
from graftax.models import Model, forward, param_shapes
from graftax.models.cost import count_params, flops
from graftax.models.network import fixed_paths, init
from graftax.models.stack import tap_names
from graftax.pages.describe import describe
from graftax.spec import ModelSpec, Prediction, Sizes
from graftax.surgery import compose, graft, lora, merge_lora, replace, resize
from graftax.testing import assert_trees_close, random_params
from graftax.train.sharding import MeshConfig
from graftax.train.sharding_report import sharding_report, state_shapes

SPEC = auraflow_spec(
    input_size=8, joint=2, single=2, hidden_size=24, num_heads=4, positions=36, text_width=12, text_tokens=6, registers=2,
    mlp_hidden=40,
)  # fmt: skip
MODEL = Model(SPEC, random_params(SPEC, jax.random.key(0)))
RNG = np.random.default_rng(0)
X, T = RNG.standard_normal((2, 8, 8, 4)).astype(np.float32), np.array([0.1, 0.8], np.float32)
TEXT = RNG.standard_normal((2, 6, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def out():
    return np.asarray(MODEL(X, T, text=TEXT))


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


# --- Conditions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({}, r"conditions: got \[\], expected \['text'\]"),
        (
            {"text": TEXT, "text_mask": T},
            r"conditions: got \['text', 'text_mask'\], expected \['text'\], padding multiplied",
        ),
        ({"text": TEXT[:, :, :5]}, r"text: float32\(2, 6, 5\), expected float embeddings \(2, m, 12\)"),
        ({"text": TEXT[:1]}, r"text: float32\(1, 6, 12\)"),
        ({"text": TEXT[:, :0]}, r"text: float32\(2, 0, 12\)"),
        ({"text": np.ones((2, 6, 12), int)}, r"text: int"),
        ({"text": TEXT * np.nan}, "text: holds NaN"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(cond, message):
    with pytest.raises(BadInput, match=message) as refused:
        MODEL(X, T, **cond)
    assert "\n" not in str(refused.value)


def test_x_and_t_that_do_not_fit_are_refused():
    for x, t, message in (
        (X[:, :7], T, r"x: shape \(2, 7, 8, 4\), expected \(b, h, w, 4\), h and w multiples of the patch 2"),
        (X[..., :3], T, r"x: shape \(2, 8, 8, 3\)"),
        (np.zeros((2, 2, 14, 4), np.float32), T, "x: 1x7 tokens, expected at most 6x6, the table of positions"),
        (X, T + 0.5, r"t: .*, expected times in \[0, 1\]"),
    ):
        with pytest.raises(BadInput, match=message):
            MODEL(x, t, text=TEXT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame": (*SPEC.frame, ("classes", 3))}, "frame classes: not known"),
        ({"frame": tuple({**dict(SPEC.frame), "positions": 35}.items())}, "positions: got 35, expected a square number"),
        (
            {"frame": tuple({**dict(SPEC.frame), "registers": True}.items())},
            "registers: got True, expected an integer from 1",
        ),
        ({"sizes": Sizes(24, 4, 6, (4, 4), text=2)}, "expected image tokens, and text tokens beside the registers"),
        ({"sizes": Sizes(24, 4, 6, (4, 7), text=8)}, "grid: 4x7 tokens, expected at most 6x6"),
        ({"prediction": Prediction()}, "ModelSpec.prediction: got"),
    ],
)
def test_frames_that_are_none(change, message):
    with pytest.raises(BadInput, match=message):
        BACKBONE.check(SPEC.replace(**change))


def test_joint_blocks_need_both_answers():
    with pytest.raises(BadInput, match=r"blocks\[1\]\.attn: joint_mha\(.*\), expected text_out=True"):
        graft(MODEL, replace("aura_joint[1].attn", "joint_mha", text_out=False), jax.random.key(0))


def test_a_spec_comes_back_from_json():
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC


def test_padding_in_a_batch_counts_nothing():
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]])
    found = BACKBONE.condition({"image": X, "text": jnp.asarray(TEXT, jnp.bfloat16), "text_mask": mask})
    assert found["text"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["text"], (TEXT * mask[..., None]).astype(jnp.bfloat16))
    assert BACKBONE.condition({"image": X, "text": TEXT})["text"] is TEXT


def test_there_is_no_null_text():
    with pytest.raises(BadInput, match="null text: an AuraFlow brings none, expected null_cond"):
        BACKBONE.null(SPEC, MODEL.params, {"text": jnp.asarray(TEXT)})


def test_times_of_the_fits():
    found = BACKBONE.vectors(SPEC, MODEL.params, 10)
    assert found.shape == (10, 24)
    np.testing.assert_allclose(found[4], BACKBONE.vec(SPEC, MODEL.params, jnp.array([0.45]))[0], atol=1e-5)
    assert {name: value.shape for name, value in BACKBONE.example(SPEC, 3).items()} == {"text": (3, 6, 12)}


# --- Positions -----------------------------------------------------------------------------------------------------------


def test_positions_are_the_middle_of_the_table():
    table = jnp.arange(36.0).reshape(1, 36, 1)
    np.testing.assert_array_equal(middle(table, (2, 2)).ravel(), [14, 15, 20, 21])
    np.testing.assert_array_equal(middle(table, (1, 3)).ravel(), [20, 21, 22])  # from 3 - 0 and 3 - 1
    np.testing.assert_array_equal(middle(table, (6, 6)), table)


# --- What is generic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [pytest.param("scan", marks=pytest.mark.slow), "kind_scan"])
def test_plans_compute_the_same(plan, out):
    assert relative(MODEL.apply(X, T, plan=plan, text=TEXT)[0], out) < 1e-5


def test_counts_and_descriptions():
    leaves = jax.tree.leaves(param_shapes(SPEC))
    assert count_params(SPEC) == sum(leaf.size for leaf in leaves)
    assert fixed_paths(SPEC) == ()
    run = jax.jit(lambda params, x, t, text: forward(SPEC, params, x, t, {"text": text}, plan="unroll")[0])
    counted = run.lower(param_shapes(SPEC), X[:1], T[:1], TEXT[:1]).cost_analysis()["flops"]
    assert 0.9 < counted / flops(SPEC) < 1.6  # XLA counts norms and softmax too, much at this width
    assert "16 tokens, 8 of text" in describe(SPEC, {})
    mesh = MeshConfig(fsdp=2, tensor=2).abstract()
    assert "no axis divides" not in str(sharding_report(state_shapes(SPEC), mesh))


def test_taps():
    inside = {f"{slot}/{end}" for slot in ("attn", "img/mlp", "txt/mlp", "mixer", "mlp") for end in ("in", "out")}
    assert {name for name in tap_names(SPEC) if "norm" not in name} == {"block/in", "block/out", *inside}


@pytest.mark.slow
def test_a_fresh_model_starts_at_zero():
    fresh = Model(SPEC, jax.jit(init, static_argnums=0)(SPEC, jax.random.key(0)))
    assert not np.asarray(fresh(X, T, text=TEXT)).any()


def test_grafts_saved_and_loaded(tmp_path):
    """Both streams' channel mixers, another mixer and norm, adapters folded in; modulations with biases compute the same."""
    edit = compose(
        replace("aura_single[0].mixer", "hyena_x", kernel=4), resize("aura_joint[1].txt/mlp", 2.0),
        replace("aura_joint[0].img/mlp", "mlp"), replace("aura_single[1].norm2", "rms_norm"),
        lora("blocks[1].attn", rank=2), merge_lora(),
    )  # fmt: skip
    student = graft(MODEL, edit, jax.random.key(1))
    graftax.save(student, tmp_path / "model")
    again = graftax.load(tmp_path / "model")
    assert again.spec == student.spec
    assert_trees_close(again.params, student.params, rtol=0, atol=0)
    found = np.asarray(again(X[:, :4], T, text=TEXT[:, :3]))
    assert found.shape == (2, 4, 8, 4)
    assert np.isfinite(found).all()


@pytest.mark.slow
def test_modulations_with_biases_compute_the_same(out):
    biased = graft(MODEL, replace("blocks[*].modulation", "adaln"), jax.random.key(1))
    assert relative(biased(X, T, text=TEXT), out) < 1e-5
    assert graft(biased, replace("blocks[*].modulation", "adaln_no_bias"), jax.random.key(1)).spec == SPEC


def test_operators_on_the_grid_behind_text_and_registers(out):
    """As wide as the image they compute the same; narrow, on an image of another size, something else and finite."""
    joint, single = MODEL.spec.blocks[0]["attn"], MODEL.spec.blocks[-1]["mixer"]

    def windows(window):
        return compose(
            replace("aura_joint[0].attn", "joint_swa_2d", window=window, **dict(joint.options), init="transplant"),
            replace("aura_joint[1].attn", "joint_natten", window=window, **dict(joint.options), init="transplant"),
            replace("aura_single[0].mixer", "natten_normed", window=window, **dict(single.options), init="transplant"),
            replace("aura_single[1].mixer", "clear_normed", radius=3 * window, **dict(single.options), init="transplant"),
        )

    assert relative(graft(MODEL, windows(4), jax.random.key(1))(X, T, text=TEXT), out) < 1e-5
    narrow = np.asarray(graft(MODEL, windows(1), jax.random.key(1))(X[:, :6], T, text=TEXT))
    assert np.isfinite(narrow).all()
    assert relative(narrow, MODEL(X[:, :6], T, text=TEXT)) > 1e-3
