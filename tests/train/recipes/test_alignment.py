"""Losses of alignment against the reference implementations: REPA's and SRA's, value and parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from relatives import golden, head, nhwc, opened

from graftax.backbones.dit import joined, variant
from graftax.diffusion import Objective
from graftax.models import forward
from graftax.train.diffusion_task import diffusion_loss
from graftax.train.recipes import Recipe, repa, sra
from graftax.train.recipes.alignment import METRICS
from graftax.train.recipes.base import run_head
from graftax.train.step import RUN

REPA, SRA, REG, REDI = golden("repa"), golden("sra"), golden("reg"), golden("redi")
CONTRAST = golden("contrastive_fm")
PROJECTOR = ("0", "2", "4")


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def heads(params, **named):
    return {**params, "heads": named}


def test_repa_is_the_references():
    """Two encoders, over whose losses the reference takes the mean, at times that were drawn there."""
    repa_, beside = opened("repa")
    projectors = {
        name: head(beside, *(f"projectors.{i}.{k}" for k in PROJECTOR)) for i, name in enumerate(("repa", "repa2"))
    }
    recipe = Recipe.parse("repa(2, a, width=20, hidden=56, weight=0.25) + repa(2, b, width=12, hidden=56, weight=0.25)")
    loss = diffusion_loss(repa_.spec, class_dropout=0.0, recipe=recipe)

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
    (student, beside), (teacher, _) = opened("sra", "model"), opened("sra")
    own = head(beside, "ap_head.linear1", "ap_head.linear2")
    recipes = {metric: Recipe.parse(f"sra(1, 3, metric={metric})") for metric in METRICS}

    @jax.jit
    def run(params, ema):
        found = {}
        for metric, recipe in recipes.items():
            loss = diffusion_loss(student.spec, class_dropout=0.0, recipe=recipe, plan="scan")
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


def test_reg_and_contrastive_flow_matching_are_the_references():
    """The class token is aligned and denoised with the latents; their velocities repel those of the next image."""
    reg, beside = opened("reg")
    own = head(beside, *(f"projectors.0.{k}" for k in PROJECTOR))
    recipe = Recipe.parse("repa(2, dino, width=12, hidden=24, token=true) + features(0.03)")
    plain = diffusion_loss(reg.spec, class_dropout=0.0, recipe=recipe)
    apart = {
        kind: diffusion_loss(reg.spec, class_dropout=0.0, recipe=recipe, objective=Objective.parse(f"none + {kind}(0.05)"))
        for kind in ("contrast", "contrast_linear")
    }

    def batch(known, names, t):
        data, noise, token, other, y, features = (known[name] for name in names)
        return {
            "image": joined(reg.spec, nhwc(data), token), "noise": joined(reg.spec, nhwc(noise), other), "t": t,
            "cond": {"y": y}, "recipe": {"policy": {}, "arrays": {"repa": {"dino": features}}},
        }  # fmt: skip

    @jax.jit
    def run(params):
        params = heads(params, repa=own)
        names = [f"loss_{name}" for name in ("x_data", "x_noise", "cls_data", "cls_noise", "y", "feat")]
        known = plain.given(params, batch(REG, names, REG["loss_t"]))
        names = ("x_data", "x_noise", "cls_data", "cls_noise", "y", "feat")
        return known, {
            kind: loss.given(params, batch(CONTRAST, names, CONTRAST[f"{of}.shift0.t"]))
            for (kind, loss), of in zip(apart.items(), ("uniform", "linear"), strict=True)
        }

    (total, metrics), contrasts = run(reg.params)
    np.testing.assert_allclose(metrics["mse"], REG["loss_denoise"].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["features"], REG["loss_cls"].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["repa"], REG["loss_proj"], atol=1e-6)
    np.testing.assert_allclose(total, REG["loss_total"], rtol=1e-5)
    for (total, metrics), of in zip(contrasts.values(), ("uniform", "linear"), strict=True):
        np.testing.assert_allclose(metrics["contrast"], 0.05 * CONTRAST[f"{of}.shift0.cfm"], rtol=1e-5)
        np.testing.assert_allclose(total, CONTRAST[f"{of}.shift0.total"], rtol=1e-5)


@pytest.mark.parametrize(("weight", "key"), [(1, "loss_lam1"), (0.3, "loss_lam0p3")])
def test_redi_is_the_references(weight, key):
    """The mean over the latents and, so many times, that over the features."""
    redi = opened("redi")[0]
    loss = diffusion_loss(redi.spec, class_dropout=0.0, recipe=Recipe.parse(f"features({weight})"))
    batch = {
        "image": nhwc(REDI["loss_x_data"]), "noise": nhwc(REDI["loss_x_noise"]), "t": 1 - REDI["loss_t"],
        "cond": {"y": REDI["loss_y"]}, "recipe": {"policy": {}, "arrays": {}},
    }  # fmt: skip
    np.testing.assert_allclose(jax.jit(loss.given)(redi.params, batch)[0], REDI[key].mean(), rtol=1e-5)


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


@pytest.mark.parametrize("term", [repa(4, "dino", 12, 8, token=True), sra(1, 3, fade=(1, 2)), sra(2, 3, hidden=[4, 5])])
def test_terms_read_back(term):
    assert Recipe.parse(str(term)).losses == (term,)
