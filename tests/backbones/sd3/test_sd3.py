"""The backbone: what it takes and refuses, images of any size, and that what is generic goes with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.backbones.sd3 import BACKBONE, sd3_spec
from graftax.distill import DistillConfig, distill
from graftax.errors import BadInput
from graftax.models import Model, forward, param_shapes
from graftax.models.backbone import find
from graftax.models.cost import count_params, count_trainable, flops
from graftax.models.network import fixed_paths, init
from graftax.pages.describe import describe
from graftax.spec import ModelSpec, Sizes
from graftax.surgery import compose, graft, lora, merge_lora, replace, select
from graftax.testing import assert_same_leaves, assert_trees_close, random_params
from graftax.train.sharding import MeshConfig
from graftax.train.sharding_report import sharding_report, state_shapes

SPEC = sd3_spec(
    input_size=8, in_channels=4, hidden_size=24, depth=4, num_heads=2, positions=6, text_width=12, text_tokens=5,
    pooled_width=10, qk_norm="rms", dual_attention=(0, 1),
)  # fmt: skip
MODEL = Model(SPEC, random_params(SPEC, jax.random.key(0)))
RNG = np.random.default_rng(0)
X, T = RNG.standard_normal((2, 8, 8, 4), np.float32), np.array([3.0, 1000.0])
TEXT, POOLED = RNG.standard_normal((2, 5, 12), np.float32), RNG.standard_normal((2, 10), np.float32)
COND = {"text": TEXT, "pooled": POOLED}


@pytest.fixture(scope="module")
def out():
    return np.asarray(MODEL(X, T, **COND))


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


# --- Inputs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({"text": TEXT}, r"conditions: got \['text'\], expected \['pooled', 'text'\]"),
        ({**COND, "text_mask": TEXT}, r"conditions: got \['pooled', 'text', 'text_mask'\]"),
        ({**COND, "text": TEXT[:, :, :5]}, r"text: float32\(2, 5, 5\), expected float embeddings \(2, m, 12\)"),
        ({**COND, "text": TEXT[:, :0]}, r"text: float32\(2, 0, 12\)"),
        ({**COND, "text": np.ones((2, 5, 12), int)}, "text: int"),
        ({**COND, "pooled": POOLED[:1]}, r"pooled: float32\(1, 10\), expected float embeddings \(2, 10\)"),
        ({**COND, "pooled": POOLED * np.nan}, "pooled: holds NaN"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(cond, message):
    with pytest.raises(BadInput, match=message) as refused:
        MODEL(X, T, **cond)
    assert "\n" not in str(refused.value)


def test_x_and_t_that_do_not_fit_are_refused():
    large = np.zeros((2, 8, 14, 4), np.float32)
    for x, t, message in (
        (X[:, :7], T, r"x: shape \(2, 7, 8, 4\), expected \(b, h, w, 4\), h and w multiples of the patch 2"),
        (X[..., :3], T, r"x: shape \(2, 8, 8, 3\)"),
        (large, T, "image of 4x7 tokens: expected at most the 6x6 that have positions"),
        (X, T + 1, "t: "),
        (X, -T, "t: "),
    ):
        with pytest.raises(BadInput, match=message):
            MODEL(x, t, **COND)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 3}, "frame classes: not known"),
        ({"text_width": 0}, "text_width: got 0, expected an integer from 1"),
        ({"positions": True}, "positions: got True"),
        ({"positions": 3}, "image of 4x4 tokens: expected at most the 3x3 that have positions"),
    ],
)
def test_frames_that_are_none(change, message):
    with pytest.raises(BadInput, match=message):
        BACKBONE.check(SPEC.with_frame(**change))


def test_sizes_that_are_none():
    with pytest.raises(BadInput, match="expected image tokens, a text stream and no context"):
        BACKBONE.check(SPEC.replace(sizes=Sizes(24, 2, 12, (4, 4))))
    with pytest.raises(BadInput, match="width: 26, expected a multiple of 4"):
        BACKBONE.check(SPEC.replace(sizes=Sizes(26, 2, 13, (4, 4), text=5)))


def test_the_null_comes_from_the_text_encoders():
    with pytest.raises(BadInput, match="null text: an SD3 brings none, expected null_cond"):
        BACKBONE.null(SPEC, MODEL.params, COND)


def test_images_at_the_middle_of_the_table():
    """A rectangle sees the middle of the table: with that part alone in a smaller table the output is the same."""
    x = RNG.standard_normal((2, 4, 8, 4), np.float32)  # 2x4 tokens of the table's 6x6, from (2, 1) on
    found = np.asarray(MODEL(x, T, **COND))
    table = np.array(MODEL.params["pos_embed"]).reshape(6, 6, 24)
    outside = table.copy()
    outside[2:4, 1:5] = 0
    for other, same in ((table - outside, True), (outside, False)):
        moved = MODEL.replace(params={**MODEL.params, "pos_embed": jnp.asarray(other.reshape(1, 36, 24))})
        assert (relative(moved(x, T, **COND), found) < 1e-6) == same


# --- What is generic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", ["segments", pytest.param("kind_scan", marks=pytest.mark.slow)])
def test_plans_compute_the_same(plan, out):
    assert relative(MODEL.apply(X, T, plan=plan, **COND)[0], out) < 1e-5


def test_counts_and_descriptions():
    assert count_params(SPEC) == sum(leaf.size for leaf in jax.tree.leaves(param_shapes(SPEC)))
    assert fixed_paths(SPEC) == ("pos_embed",)
    assert count_params(SPEC) - count_trainable(SPEC) == 36 * 24
    run = jax.jit(lambda params, x, t, cond: forward(SPEC, params, x, t, cond, plan="unroll")[0])
    inputs = (jnp.asarray(X[:1]), jnp.asarray(T[:1]), {name: jnp.asarray(value[:1]) for name, value in COND.items()})
    counted = run.lower(param_shapes(SPEC), *inputs).cost_analysis()["flops"]
    assert 0.9 < counted / flops(SPEC) < 1.6  # XLA counts norms and softmax too, much at this width
    assert "16 tokens, 5 of text" in describe(SPEC, {})
    mesh = MeshConfig(fsdp=2, tensor=2).abstract()
    assert "no axis divides" not in str(sharding_report(state_shapes(SPEC), mesh))
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC
    assert find(SPEC) is BACKBONE


def test_conditions_without_data():
    found = BACKBONE.vectors(SPEC, MODEL.params, 12)
    assert found.shape == (12, 24)
    assert len(np.unique(np.asarray(found), axis=0)) == 12
    shapes = jax.tree.map(jnp.shape, BACKBONE.example(SPEC, 3))
    assert shapes == {"text": (3, 5, 12), "pooled": (3, 10)}
    assert set(BACKBONE.condition({**COND, "image": X})) == {"text", "pooled"}


@pytest.mark.slow
def test_a_fresh_model_starts_at_zero():
    fresh = Model(SPEC, jax.jit(init, static_argnums=0)(SPEC, jax.random.key(0)))
    assert not np.asarray(fresh(X, T, **COND)).any()


def test_selectors():
    assert [str(site) for site in select("sd3_dual[*].attn2", SPEC)] == ["blocks[0].img/attn2", "blocks[1].img/attn2"]
    assert [str(site) for site in select("sd3[0].mlp", SPEC)] == ["blocks[2].img/mlp", "blocks[2].txt/mlp"]
    assert len(select("blocks[*].joint", SPEC)) == 4


@pytest.mark.slow
def test_stages_of_a_graft(tmp_path):
    """Graft every attention, stage 1 on them, adapters folded in, saved, loaded."""
    edit = compose(
        replace("blocks[*].attn", "joint_mha", qk_norm="rms", text_out=True), replace("sd3_dual[*].attn2", "hyena_x")
    )
    student = graft(MODEL, edit, jax.random.key(1))
    batches = [{"image": X, **COND}] * 2
    tuned, history = distill(MODEL, student, batches, DistillConfig(steps=2), batch_size=2, show=False)
    assert np.isfinite(history[-1]["loss"])
    trained = [f"blocks/{site.block:02d}/{site.slot}" for site in select(student.meta.sites, SPEC)]
    assert_same_leaves(student.params, tuned.params, trained)
    adapted = graft(tuned, lora("blocks[*].mlp", "text_embedder", rank=2), jax.random.key(2))
    merged = graft(adapted, merge_lora())
    graftax.save(merged, tmp_path / "model")
    again = graftax.load(tmp_path / "model")
    assert again.spec == merged.spec
    assert_trees_close(again.params, merged.params, rtol=0, atol=0)
