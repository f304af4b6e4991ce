"""The backbone: what it takes and refuses, images and texts of any size; and that what is generic goes with it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import graftax
from graftax.backbones.embedders import packed, unpacked
from graftax.backbones.flux import BACKBONE, flux_spec, variant
from graftax.backbones.flux.frame import rope
from graftax.data.feed import as_batches
from graftax.diffusion import Sampling
from graftax.errors import BadInput
from graftax.models import Model, forward, param_shapes
from graftax.models.collect import collect
from graftax.models.cost import count_params, flops
from graftax.models.network import init
from graftax.pages.describe import describe
from graftax.spec import ModelSpec, Sizes
from graftax.surgery import graft, lora, merge_lora
from graftax.testing import random_params
from graftax.train.sharding import MeshConfig
from graftax.train.sharding_report import sharding_report, state_shapes

SIZES = {"input_size": 8, "hidden_size": 16, "num_heads": 2, "text_width": 6, "text_tokens": 3, "pooled_width": 4}
SPEC = flux_spec(**SIZES, double=2, single=3, guidance=True)
MODEL = Model(SPEC, random_params(SPEC, jax.random.key(0)))
SCHNELL = flux_spec(**SIZES, double=1, single=1)
RNG = np.random.default_rng(0)
X, T = RNG.standard_normal((2, 8, 8, 16), np.float32), np.array([0.1, 1.0], np.float32)
COND = {
    "text": RNG.standard_normal((2, 3, 6), np.float32), "pooled": RNG.standard_normal((2, 4), np.float32),
    "guidance": np.array([3.5, 1.0], np.float32),
}  # fmt: skip
BARE = {name: value for name, value in COND.items() if name != "guidance"}


@functools.cache
def out():
    return np.asarray(MODEL(X, T, **COND))


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


# --- Conditions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({}, r"conditions: got \[\], expected \['guidance', 'pooled', 'text'\]"),
        (BARE, r"expected \['guidance', 'pooled', 'text'\], guidance \(3.5\) a number for each image"),
        ({**COND, "text_mask": np.ones((2, 3))}, "'text_mask'.*: Flux reads padding too, without a mask"),
        ({**COND, "y": np.zeros(2)}, "conditions: got .*'y'"),
        ({**COND, "text": COND["text"][:, :, :5]}, r"text: float32\(2, 3, 5\), expected float embeddings \(2, m, 6\)"),
        ({**COND, "text": COND["text"][:, :0]}, r"text: float32\(2, 0, 6\)"),
        ({**COND, "text": np.ones((2, 3, 6), int)}, r"text: int.*, expected float embeddings"),
        ({**COND, "pooled": COND["pooled"][:, :3]}, r"pooled: float32\(2, 3\), expected floats \(2, 4\)"),
        ({**COND, "pooled": COND["pooled"] * np.nan}, "pooled: holds NaN"),
        ({**COND, "guidance": np.float32(3.5)}, r"guidance: float32\(\), expected floats \(2,\)"),
        ({**COND, "guidance": np.full(2, np.inf)}, "guidance: holds NaN or infinite"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(cond, message):
    with pytest.raises(BadInput, match=message) as refused:
        MODEL(X, T, **cond)
    assert "\n" not in str(refused.value)


def test_a_model_without_guidance_refuses_it_by_name():
    model = Model(SCHNELL, random_params(SCHNELL, jax.random.key(0)))
    assert model(X, T, **BARE).shape == X.shape
    with pytest.raises(BadInput, match=r"expected \['pooled', 'text'\]: this model \(schnell\) knows no guidance"):
        model(X, T, **COND)


def test_x_and_t_that_do_not_fit_are_refused():
    for x, t, message in (
        (X[:, :7], T, r"x: shape \(2, 7, 8, 16\), expected \(b, h, w, 16\), h and w multiples of the patch 2"),
        (X[..., :4], T, r"x: shape \(2, 8, 8, 4\)"),
        (X, T * 1000, r"t: \[100.*, expected times in \[0, 1\]"),
    ):
        with pytest.raises(BadInput, match=message):
            MODEL(x, t, **COND)


def test_there_is_no_unconditional_twin():
    with pytest.raises(BadInput, match=r"Flux has none, dev's guidance is a condition, guidance=3\.5; expected cfg_scale=1"):
        BACKBONE.null(SPEC, MODEL.params, COND)
    with pytest.raises(BadInput, match="Flux has none, this one draws without guidance"):
        BACKBONE.null(SCHNELL, {}, BARE)
    assert set(BACKBONE.condition({"image": X, **COND, "label": T})) == set(COND)
    with pytest.raises(BadInput, match=r"conditions: got \['text'\], expected pooled too"):
        forward(SPEC, MODEL.params, X, T, BACKBONE.condition({"text": COND["text"]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 3}, "frame classes: not known"),
        ({"text_width": 0}, "text_width: got 0, expected an integer from 1"),
        ({"guidance": 1}, "guidance: got 1, expected true or false"),
        ({"rope_axes": "4,4,4"}, "rope_axes: got '4,4,4', expected three even numbers that add up to 8"),
    ],
)
def test_frames_that_are_none(change, message):
    with pytest.raises(BadInput, match=message):
        BACKBONE.check(SPEC.with_frame(**change))
    with pytest.raises(BadInput, match="expected image tokens, a text stream and no context"):
        BACKBONE.check(SPEC.replace(sizes=Sizes(16, 2, 8, (4, 4), context=3)))


def test_what_a_user_says_must_be_what_the_file_says(tmp_path):
    graftax.save(MODEL, tmp_path)
    assert graftax.load(tmp_path, rope_axes=(4, 2, 2), text_tokens=3, input_size=8).spec == SPEC
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC
    for told, message in (
        ({"rope_axes": (2, 2, 4)}, r"override rope_axes=\(2, 2, 4\): the file says 4,2,2"),
        ({"text_tokens": 5}, "override text_tokens=5: the file says 3"),
        ({"window": 2, "classes": 2}, "override 'classes': not known"),
    ):
        with pytest.raises(BadInput, match=message):
            graftax.load(tmp_path, **told)


# --- Sizes -----------------------------------------------------------------------------------------------------------------


def test_packing():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    tokens = packed(x, 2)
    np.testing.assert_array_equal(tokens[1, 4].reshape(3, 2, 2), x[1, 2:4, 2:4].transpose(2, 0, 1))  # row 1, column 1
    np.testing.assert_array_equal(unpacked(tokens, 2, (2, 3)), x)


def test_text_stays_and_images_turn_by_row_and_column():
    cos, sin = rope(SPEC.replace(sizes=Sizes(16, 2, 8, (2, 3), 2)), 2)
    assert cos.shape == sin.shape == (2 + 6, 4)
    np.testing.assert_array_equal(sin[:3], 0)  # two words, and the first pixel
    np.testing.assert_allclose(sin[3:, :2], 0)  # the axis of the index
    np.testing.assert_allclose(sin[2:, 2], np.sin([0, 0, 0, 1, 1, 1]), rtol=1e-6)
    np.testing.assert_allclose(sin[2:, 3], np.sin([0, 1, 2, 0, 1, 2]), rtol=1e-6)


def test_images_and_texts_of_other_sizes():
    wide = RNG.standard_normal((2, 4, 12, 16), np.float32)
    found = MODEL(wide, T, **{**COND, "text": COND["text"][:, :2]})
    assert found.shape == wide.shape
    sized = SPEC.replace(sizes=Sizes(16, 2, 8, (2, 6), 2))
    expected = Model(sized, MODEL.params)(wide, T, **{**COND, "text": COND["text"][:, :2]})
    assert relative(found, expected) < 1e-6


def test_counts_and_descriptions():
    for spec in (SPEC, SCHNELL):
        assert count_params(spec) == sum(leaf.size for leaf in jax.tree.leaves(param_shapes(spec)))
        assert set(BACKBONE.example(spec, 2)) == (set(COND) if spec == SPEC else set(BARE))
    found = BACKBONE.vectors(SPEC, MODEL.params, 12)
    assert found.shape == (12, 16)
    assert len(np.unique(np.asarray(found), axis=0)) == 12
    assert "8x8x16, patch 2, 16 tokens, 3 of text" in describe(SPEC, {})
    mesh = MeshConfig(fsdp=2, tensor=2).abstract()
    assert "no axis divides" not in str(sharding_report(state_shapes(SPEC), mesh))
    run = jax.jit(lambda params, x, t, cond: forward(SPEC, params, x, t, cond, plan="unroll")[0])
    inputs = jax.tree.map(jnp.asarray, (X[:1], T[:1], {name: value[:1] for name, value in COND.items()}))
    counted = run.lower(param_shapes(SPEC), *inputs).cost_analysis()["flops"]
    assert 0.9 < counted / flops(SPEC) < 1.6  # XLA counts norms and softmax too, much at this width


# --- What is generic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [pytest.param("scan", marks=pytest.mark.slow), "kind_scan"])
def test_plans_compute_the_same(plan):
    assert relative(MODEL.apply(X, T, plan=plan, **COND)[0], out()) < 1e-5


def test_a_fresh_model_starts_at_zero():
    fresh = Model(SCHNELL, jax.jit(init, static_argnums=0)(SCHNELL, jax.random.key(0)))
    assert not np.asarray(fresh(X, T, **BARE)).any()


def test_inference_in_bfloat16():
    halves = MODEL.replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), MODEL.params))
    found = halves.apply(X, T, dtype=jnp.bfloat16, **COND)[0]
    assert found.dtype == jnp.float32
    assert relative(found, out()) < 0.1


@pytest.mark.slow
def test_adapters_in_both_kinds_of_blocks():
    student = graft(MODEL, lora("single[*].mixer", "double[0].attn", "blocks/.*/txt/mlp", rank=2), jax.random.key(2))
    assert len(student.spec.adapters) == 3 * 2 + 4 + 2 * 2
    params = jax.tree.map(lambda leaf: leaf + 0.1, student.params["lora"])
    moved = student.replace(params={**student.params, "lora": params})
    assert relative(moved(X, T, **COND), out()) > 1e-2
    assert relative(graft(moved, merge_lora(), jax.random.key(0))(X, T, **COND), moved(X, T, **COND)) < 1e-5


def test_batches_bring_all_conditions():
    batch = next(as_batches({"image": X, **COND}, 2, spec=SPEC))
    assert set(batch) == {"image", *COND}
    assert {name: array.shape for name, array in BACKBONE.condition(batch).items()} == {k: v.shape for k, v in COND.items()}
    with pytest.raises(BadInput, match=r"expected text \(2, ...\) beside image"):
        as_batches({"image": X}, 2, spec=SPEC)


def test_a_model_without_a_pooled_text(tmp_path):
    """As one is trained on texts of one encoder; no file of others holds it."""
    spec = flux_spec(**{**SIZES, "pooled_width": 0}, double=1, single=1)
    model = Model(spec, random_params(spec, jax.random.key(0)))
    assert model(X, T, text=COND["text"]).shape == X.shape
    assert count_params(spec) == sum(leaf.size for leaf in jax.tree.leaves(param_shapes(spec)))
    assert set(BACKBONE.example(spec, 1)) == {"text"}
    assert set(BACKBONE.condition({"image": X, "text": X, "text_mask": X})) == {"text"}
    with pytest.raises(BadInput, match=r"got \['pooled', 'text'\], expected \['text'\]"):
        model(X, T, **BARE)
    with pytest.raises(BadInput, match="a Flux without a pooled text"):
        graftax.export(model, tmp_path / "model.safetensors")


def test_a_model_that_reads_words(tmp_path):
    """Its text encoder is among its parameters; its unconditional twin is the empty caption."""
    spec = flux_spec(**{**SIZES, "text_width": 8, "pooled_width": 0}, double=1, single=1, words=10, text_heads=2)
    model, text = Model(spec, random_params(spec, jax.random.key(0))), np.array([[5, 7, 2], [4, 2, 0]])
    assert count_params(spec) == sum(leaf.size for leaf in jax.tree.leaves(param_shapes(spec)))
    first = model(X, T, text=text)
    assert relative(model(X, T, text=text[::-1]), first) > 1e-3
    null = BACKBONE.null(spec, model.params, {"text": jnp.asarray(text)})
    np.testing.assert_array_equal(null["text"], [[2, 0, 0]] * 2)
    assert BACKBONE.example(spec, 2)["text"].shape == (2, 3)
    graftax.save(model, tmp_path / "folder")
    assert graftax.load(tmp_path / "folder", vocabulary="scenes").spec == spec.with_frame(vocabulary="scenes")
    with pytest.raises(BadInput, match=r"text: words 0\.\.10, expected 0\.\.9"):
        model(X, T, text=text + 3 * (text == 7))
    with pytest.raises(BadInput, match="pooled_width: got 4, expected 0 beside words"):
        BACKBONE.check(spec.with_frame(pooled_width=4))


HLO_LINES = 12_000


@pytest.mark.slow
def test_a_training_step_of_true_depth_is_short():
    """19 + 38 blocks compile to two loops: loss, gradient and AdamW, optimised, stay as short as for far fewer blocks."""
    spec, optimiser = flux_spec(**SIZES, double=19, single=38, guidance=True), optax.adamw(1e-4)

    def loss(params, x, t, cond, noise):
        share = t[:, None, None, None]
        out, _ = forward(spec, params, (1 - share) * x + share * noise, t, cond)
        return jnp.mean((out - (noise - x)) ** 2)

    def step(params, state, *batch):
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params = jax.eval_shape(lambda params: collect(spec, params), param_shapes(spec))
    batch = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, jnp.float32), (X, T, COND, X))
    text = jax.jit(step).lower(params, jax.eval_shape(optimiser.init, params), *batch).compile().as_text()
    lines = text[text.find("\n%") :].count("\n")  # without its tables of source lines
    assert 1_000 < lines <= HLO_LINES


def test_how_each_is_drawn():
    dev, schnell = variant("flux-dev"), variant("flux-schnell")
    assert BACKBONE.sampling(dev)["shift"] == pytest.approx(np.exp(1.15))  # at 4,096 tokens
    assert Sampling(**BACKBONE.sampling(schnell)) == Sampling(sampler="euler", steps=4, cfg_scale=1.0, cfg_channels=None)
    reading = flux_spec(**{**SIZES, "pooled_width": 0}, double=1, single=1, words=9, text_heads=2)
    assert BACKBONE.sampling(reading)["cfg_scale"] == 3.5
