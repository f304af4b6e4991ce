"""Losses of alignment against the reference implementations: REPA's and SRA's, value and parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from relatives import golden, model, nhwc, tensors

from graftax.backbones.dit import variant
from graftax.diffusion import Flow
from graftax.models import forward
from graftax.train.diffusion_task import diffusion_loss
from graftax.train.recipes import Recipe, repa, sra
from graftax.train.recipes.alignment import METRICS
from graftax.train.recipes.base import run_head
from graftax.train.step import RUN

REPA, SRA = golden("repa"), golden("sra")


def head(name, part, *layers):
    """A head of a reference file."""
    found = tensors(name, part)
    return {
        f"fc{i + 1}": {"kernel": found[f"{layer}.weight"].T, "bias": found[f"{layer}.bias"]}
        for i, layer in enumerate(layers)
    }


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def heads(params, **named):
    return {**params, "heads": named}


@functools.cache
def repa_model():
    return model("repa"), {name: head("repa", "", *(f"projectors.{i}.{k}" for k in (0, 2, 4)))
                           for i, name in enumerate(("repa", "repa2"))}  # fmt: skip


def test_repa_is_the_references():
    """Two encoders, over whose losses the reference takes the mean, at times that were drawn there."""
    repa_, projectors = repa_model()
    recipe = Recipe.parse("repa(2, a, width=20, hidden=56, weight=0.25) + repa(2, b, width=12, hidden=56, weight=0.25)")
    loss = diffusion_loss(repa_.spec, Flow(), class_dropout=0.0, recipe=recipe)

    features = {"repa": {"a": REPA["loss_feat_0"]}, "repa2": {"b": REPA["loss_feat_1"]}}

    @jax.jit
    def run(params):
        _, taps = forward(repa_.spec, params, nhwc(REPA["x"]), REPA["t"], {"y": REPA["y"]}, states=(1,))
        rows = [run_head(projectors[name], taps["state/1"]) for name in projectors]
        found = {}
        for kind in ("uniform", "lognormal"):
            batch = {
                "image": nhwc(REPA["loss_x_data"]), "noise": nhwc(REPA["loss_x_noise"]),
                "t": REPA[f"loss.linear.{kind}.t"], "cond": {"y": REPA["loss_y"]},
                "recipe": {"policy": {}, "arrays": features},
            }  # fmt: skip
            found[kind] = loss.given(heads(params, **projectors), batch)
        return rows, found

    rows, found = run(repa_.params)
    for i in range(2):
        assert relative(rows[i], REPA[f"proj_{i}"]) < 1e-5
    for kind, (total, metrics) in found.items():
        known = {name: REPA[f"loss.linear.{kind}.{name}"] for name in ("denoise", "proj", "total_0p5")}
        np.testing.assert_allclose(metrics["mse"], known["denoise"].mean(), rtol=1e-5)
        np.testing.assert_allclose((metrics["repa"] + metrics["repa2"]) / 2, known["proj"], atol=1e-6)
        np.testing.assert_allclose(total, known["total_0p5"], rtol=1e-5)


def test_sra_is_the_references():
    student, teacher = model("sra", "model", heads=2), model("sra", "ema", heads=2)
    own = head("sra", "model", "ap_head.linear1", "ap_head.linear2")
    recipes = {metric: Recipe.parse(f"sra(1, 3, metric={metric})") for metric in METRICS}

    @jax.jit
    def run(params, ema):
        found = {}
        for metric, recipe in recipes.items():
            loss = diffusion_loss(student.spec, Flow(), class_dropout=0.0, recipe=recipe, plan="scan")
            batch = {
                "image": nhwc(SRA["x_data"]), "noise": nhwc(SRA["x_noise"]), "t": SRA["t_student"],
                "cond": {"y": SRA["y_after_drop"]},
                "recipe": {"policy": {}, "arrays": {"sra": {"earlier": SRA["u_teacher"]}}},
            }  # fmt: skip
            found[metric] = loss.given({**heads(params, sra=own), RUN: {"ema": ema, "step": jnp.zeros((), int)}}, batch)
        return found

    names = {"smooth_l1": "sml1", "l1": "l1", "l2": "l2", "cosine": "cos.channel_axis"}
    for metric, (_, metrics) in run(student.params, teacher.params).items():
        np.testing.assert_allclose(metrics["mse"], SRA["linear.denoise"].mean(), rtol=1e-5)
        above = 1 if metric == "cosine" else 0  # theirs is 1 - cos
        np.testing.assert_allclose(above + metrics["sra"], SRA[f"linear.align.{names[metric]}"], rtol=1e-5, atol=1e-6)


def test_heads_have_as_many_parameters_as_published():
    spec = variant("DiT-XL/2")
    for term, count in {repa(8): 8_131_328, sra(8, 20): 5_311_872}.items():
        shapes = jax.eval_shape(lambda term=term: term.init(spec, jax.random.key(0)))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_weights_fade():
    term = sra(8, 20, fade=(100, 50))
    steps = jnp.array([0, 100, 150, 200])
    np.testing.assert_allclose(jax.vmap(term.factor)(steps), [0.2, 0.2, 0.02, 0.002], rtol=1e-5)
    assert term.sees_run
    assert repa(8).factor(steps[0]) == 0.5


@pytest.mark.parametrize("term", [repa(4, "dino", 12, 8), sra(1, 3, fade=(1, 2)), sra(2, 3, hidden=[4, 5])])
def test_terms_read_back(term):
    assert Recipe.parse(str(term)).losses == (term,)
