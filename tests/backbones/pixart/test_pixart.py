"""The backbone: what it takes and refuses, its null caption, images of any size; and that what is generic goes with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.backbones.pixart import BACKBONE
from graftax.distill import DistillConfig, distill
from graftax.errors import BadInput
from graftax.models import Model, forward, param_shapes
from graftax.models.backbone import find
from graftax.models.cost import count_params, count_trainable, flops
from graftax.models.library import Library
from graftax.models.network import fixed_paths, init
from graftax.models.stack import tap_names
from graftax.pages.describe import describe
from graftax.spec import ModelSpec, Sizes
from graftax.surgery import graft, lora, merge_lora, replace
from graftax.testing import assert_trees_close, random_params, tiny_text_spec
from graftax.train import DiffusionConfig, LoopConfig, finetune
from graftax.train.sharding import MeshConfig
from graftax.train.sharding_report import sharding_report, state_shapes

SPEC = tiny_text_spec(hidden_size=24, depth=2)
MODEL = Model(SPEC, random_params(SPEC, jax.random.key(0)))
RNG = np.random.default_rng(0)
X, T = RNG.standard_normal((2, 8, 8, 4)).astype(np.float32), np.array([3, 700])
TEXT, MASK = RNG.standard_normal((2, 6, 12)).astype(np.float32), np.array([[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]])
COND = {"text": TEXT, "text_mask": MASK}
DATA = {"image": X, **COND}


@pytest.fixture(scope="module")
def out():
    return np.asarray(MODEL(X, T, **COND))


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


# --- Conditions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({}, r"conditions: got \[\], expected \['text'\]"),
        ({"y": T}, r"conditions: got \['y'\]"),
        ({**COND, "pooled": TEXT}, r"conditions: got \['pooled', 'text', 'text_mask'\]"),
        ({"text": TEXT[:, :, :5]}, r"text: float32\(2, 6, 5\), expected float embeddings \(2, m, 12\)"),
        ({"text": TEXT[:1]}, r"text: float32\(1, 6, 12\)"),
        ({"text": TEXT[:, :0]}, r"text: float32\(2, 0, 12\)"),
        ({"text": np.ones((2, 6, 12), int)}, r"text: int"),
        ({"text": TEXT * np.nan}, "text: holds NaN"),
        ({"text": TEXT, "text_mask": MASK[:, :3]}, r"text_mask: shape \(2, 3\), expected \(2, 6\)"),
        ({"text": TEXT, "text_mask": MASK * 2}, "text_mask: expected ones for real tokens and zeros"),
        ({"text": TEXT, "resolution": np.ones((2, 2))}, "conditions: got"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(cond, message):
    with pytest.raises(BadInput, match=message) as refused:
        MODEL(X, T, **cond)
    assert "\n" not in str(refused.value)


def test_conditions_on_size_are_needed_where_a_model_has_them():
    spec = tiny_text_spec(hidden_size=24, depth=1, micro=True)
    model = Model(spec, random_params(spec, jax.random.key(0)))
    sizes = {"resolution": np.array([[512.0, 1024.0]] * 2, np.float32), "aspect_ratio": np.full((2, 1), 0.5, np.float32)}
    with pytest.raises(BadInput, match=r"expected \['aspect_ratio', 'resolution', 'text'\]"):
        model(X, T, **COND)
    with pytest.raises(BadInput, match=r"aspect_ratio: shape \(2,\), expected \(2, 1\)"):
        model(X, T, **COND, **{**sizes, "aspect_ratio": np.ones(2)})
    with pytest.raises(BadInput, match="expected resolution too"):
        jax.eval_shape(lambda: forward(spec, model.params, jnp.asarray(X), jnp.asarray(T), COND))
    leaves = jax.tree.leaves(param_shapes(spec))
    assert count_params(spec) == sum(leaf.size for leaf in leaves)
    found = BACKBONE.vectors(spec, model.params, 12)
    assert found.shape == (15, 24)
    assert len(np.unique(np.asarray(found), axis=0)) == 15
    assert set(BACKBONE.example(spec, 2)) == {"text", "text_mask", "resolution", "aspect_ratio"}


def test_x_and_t_that_do_not_fit_are_refused():
    for x, t, message in (
        (X[:, :7], T, r"x: shape \(2, 7, 8, 4\), expected \(b, h, w, 4\), h and w multiples of the patch 2"),
        (X[..., :3], T, r"x: shape \(2, 8, 8, 3\)"),
        (X, T + 500, r"t: \[503, 1200\], expected times in \[0, 1000\)"),
    ):
        with pytest.raises(BadInput, match=message):
            MODEL(x, t, **COND)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 3}, "frame classes: not known"),
        ({"text_width": 0}, "text_width: got 0, expected an integer from 1"),
        ({"null_tokens": True}, "null_tokens: got True"),
        ({"interpolation": 1}, "interpolation: got 1, expected a positive number"),
        ({"micro": 1}, "micro: got 1, expected true or false"),
    ],
)
def test_frames_that_are_none(change, message):
    with pytest.raises(BadInput, match=message):
        BACKBONE.check(SPEC.with_frame(**change))
    with pytest.raises(BadInput, match="expected image tokens, a context and no text stream"):
        BACKBONE.check(SPEC.replace(sizes=Sizes(24, 4, 6, (4, 4))))


def test_a_spec_comes_back_from_json():
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC


# --- The null caption ----------------------------------------------------------------------------------------------------


def test_the_null_caption_stands_for_any_text_of_its_mask():
    null = BACKBONE.null(SPEC, MODEL.params, {name: jnp.asarray(value) for name, value in COND.items()})
    np.testing.assert_array_equal(null["text"], np.broadcast_to(MODEL.params["null_caption"], TEXT.shape))
    np.testing.assert_array_equal(null["text_mask"], MASK)
    short = BACKBONE.null(SPEC, MODEL.params, {"text": jnp.asarray(TEXT[:, :2], jnp.bfloat16)})
    assert (short["text"].shape, short["text"].dtype) == ((2, 2, 12), jnp.bfloat16)
    with pytest.raises(BadInput, match="text: 7 tokens, expected at most the 6 of the null caption"):
        BACKBONE.null(SPEC, MODEL.params, {"text": jnp.zeros((2, 7, 12))})
    assert fixed_paths(SPEC) == ("null_caption",)
    assert fixed_paths(SPEC.with_frame(null_tokens=0)) == ()
    assert count_params(SPEC) - count_trainable(SPEC) == 6 * 12


def test_guidance_needs_a_twin():
    null = {"text": np.zeros((1, 6, 12), np.float32), "text_mask": np.array([[1, 0, 0, 0, 0, 0]])}
    noise = RNG.standard_normal((2, 4, 12, 4)).astype(np.float32)
    settings = {"sampler": "ddim", "steps": 2, "cfg_scale": 3.0, "cfg_channels": None, "initial_noise": noise}
    learned, given = (graftax.sample(MODEL, cond=COND, null_cond=twin, **settings) for twin in (None, null))
    assert learned.shape == noise.shape  # the noise says the size
    assert relative(given, learned) > 1e-2
    bare = MODEL.replace(spec=SPEC.with_frame(null_tokens=0))
    with pytest.raises(BadInput, match="null caption: this model's file brings none, expected null_cond"):
        graftax.sample(bare, cond=COND, **settings)
    with pytest.raises(BadInput, match=r"null_cond: got \['text'\], expected \['text', 'text_mask'\] as in cond"):
        graftax.sample(MODEL, cond=COND, null_cond={"text": TEXT}, **settings)
    with pytest.raises(BadInput, match=r"null_cond text: shape \(2, 5, 12\), expected \(2, 6, 12\)"):
        graftax.sample(MODEL, cond=COND, null_cond={**COND, "text": TEXT[:, :5]}, **settings)
    with pytest.raises(BadInput, match="null_cond: text_mask: expected ones"):
        graftax.sample(MODEL, cond=COND, null_cond={**COND, "text_mask": MASK * 3}, **settings)
    with pytest.raises(BadInput, match=r"initial_noise: shape \(1, 4, 12, 4\), expected noise of 2 images"):
        graftax.sample(MODEL, cond=COND, **{**settings, "initial_noise": noise[:1]})


# --- What is generic -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_operators_follow_the_size_of_the_image():
    """A 2-D operator sees neighbours in the grid of the image, whatever size the model was made for."""
    student = graft(MODEL, replace("blocks[0].mixer", "hyena_2d", kernel=3), jax.random.key(1))
    wide = RNG.standard_normal((2, 4, 12, 4)).astype(np.float32)
    found = student(wide, T, **COND)
    sizes = Sizes(24, 4, 6, (2, 6), context=6)
    np.testing.assert_allclose(found, Model(student.spec.replace(sizes=sizes), student.params)(wide, T, **COND), atol=1e-6)
    scions = {"mlp": ("mlp_hyena_x", {}), "mixer": ("mha_kv", {"factor": 3})}
    for (slot, (kind, options)), message in zip(
        scions.items(), (r"x of 2x6 tokens: blocks\[1\].mlp is .*, which has weights for 4x4 alone", "got 3"), strict=True
    ):
        other = graft(MODEL, replace(f"blocks[1].{slot}", kind, **options), jax.random.key(1))
        with pytest.raises(BadInput, match=message):
            other(wide, T, **COND)


@pytest.mark.parametrize("plan", ["scan", "superblock", "kind_scan"])
def test_plans_compute_the_same(plan, out):
    assert relative(MODEL.apply(X, T, plan=plan, **COND)[0], out) < 1e-5


def test_the_program_as_data_computes_the_same(out):
    library = Library((SPEC,))
    cond = {name: jnp.asarray(value) for name, value in COND.items()}
    found = jax.jit(library.forward)(library.prepare(MODEL.params), library.encode(), jnp.asarray(X), jnp.asarray(T), cond)
    assert relative(found, out) < 1e-5


def test_every_operator_maps_its_input_tap_to_its_output_tap():
    assert [name for name in tap_names(SPEC) if name.startswith("cross")] == ["cross/in", "cross/out"]
    _, taps = MODEL.apply(X, T, capture=tap_names(SPEC), **COND)
    assert {value.shape for value in taps.values()} == {(2, 2, 16, 24)}
    np.testing.assert_allclose(taps["block/in"][1], taps["block/out"][0], atol=1e-6)


def test_counts_and_descriptions():
    leaves = jax.tree.leaves(param_shapes(SPEC))
    assert count_params(SPEC) == sum(leaf.size for leaf in leaves)
    run = jax.jit(lambda params, x, t, cond: forward(SPEC, params, x, t, cond, plan="unroll")[0])
    inputs = (jnp.asarray(X[:1]), jnp.asarray(T[:1]), {name: jnp.asarray(value[:1]) for name, value in COND.items()})
    counted = run.lower(param_shapes(SPEC), *inputs).cost_analysis()["flops"]
    assert 0.9 < counted / flops(SPEC) < 1.6  # XLA counts norms and softmax too, much at this width
    assert "16 tokens, 6 of text looked at, learned variance" in describe(SPEC, {})
    mesh = MeshConfig(fsdp=2, tensor=2).abstract()
    assert "no axis divides" not in str(sharding_report(state_shapes(SPEC), mesh))


@pytest.mark.slow
def test_a_fresh_model_starts_at_zero_and_without_its_text():
    fresh = Model(SPEC, jax.jit(init, static_argnums=0)(SPEC, jax.random.key(0)))
    assert not np.asarray(fresh(X, T, **COND)).any()
    _, taps = fresh.apply(X, T, capture="cross/out", **COND)
    assert not np.asarray(taps["cross/out"]).any()


@pytest.mark.slow
def test_stages_of_a_graft(tmp_path):
    """Graft, stage 1, stage 2 by LoRA with dropped captions, folded in, saved, loaded."""
    student = graft(MODEL, replace("blocks[1].mixer", "hyena_x", kernel=4), jax.random.key(1))
    student, history = distill(MODEL, student, DATA, DistillConfig(steps=1, calibration=1), batch_size=2, show=False)
    assert history[-1]["loss"] < 1
    student = graft(student, lora("blocks[*].mixer", "blocks/.*/cross", "caption", rank=2), jax.random.key(2))
    assert {adapter.path.rsplit("/", 2)[1] for adapter in student.spec.adapters} >= {"q", "kv", "proj", "in_proj", "fc1"}
    config = DiffusionConfig(loop=LoopConfig(1), batch_size=2, class_dropout=0.5, ema_decay=0.0, frozen=("(?!lora/).*",))
    tuned, _ = finetune(student, DATA, config, show=False)
    assert np.abs(tuned.params["lora"]["blocks"]["01"]["cross"]["kv"]["kernel"]["b"]).max() > 0
    np.testing.assert_array_equal(tuned.params["null_caption"], MODEL.params["null_caption"])
    merged = graft(tuned, merge_lora())
    graftax.save(merged, tmp_path / "model")
    again = graftax.load(tmp_path / "model")
    assert again.spec == merged.spec
    assert_trees_close(again.params, merged.params, rtol=0, atol=0)


def test_training_without_a_null_caption_or_text_is_refused():
    config = DiffusionConfig(loop=LoopConfig(1), batch_size=2)
    spec = SPEC.with_frame(null_tokens=0)
    bare = Model(spec, {name: leaf for name, leaf in MODEL.params.items() if name != "null_caption"})
    with pytest.raises(BadInput, match="in training class_dropout=0"):
        finetune(bare, DATA, config, show=False)
    for data, message in (
        ({"image": X}, r"expected text \(2, \.\.\.\) beside image"),
        ({"image": X, "text": TEXT[:1]}, r"expected text \(2, \.\.\.\) beside image"),
        ({**DATA, "label": T}, "data: arrays .*'label'"),
    ):
        with pytest.raises(BadInput, match=message):
            finetune(MODEL, data, config, show=False)


def test_full_adaln_fits_the_shared_one():
    full = graft(MODEL, replace("blocks[0].adaln", "adaln"), jax.random.key(0))
    assert relative(full(X, T, **COND), np.asarray(MODEL(X, T, **COND))) < 1e-5
    assert find(SPEC) is BACKBONE
