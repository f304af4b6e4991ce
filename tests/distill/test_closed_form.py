"""Least squares for last layers, and the importance of neurons: against exact solutions and definitions."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_graft import FAST, Stream, batch, student, teacher

from graftax import ops
from graftax.blocks import build
from graftax.diffusion import Process
from graftax.distill import calibrate, distill, distill_job, neuron_importance
from graftax.distill.groups import group_sites
from graftax.distill.teacher import Teacher
from graftax.errors import BadInput
from graftax.models import Model
from graftax.ops.base import Operator, apply_with_features, shapes_of
from graftax.spec import op
from graftax.surgery import all_sites, replace, resize
from graftax.surgery.select import Site, select
from graftax.testing import assert_same_leaves, assert_trees_close, tiny_spec
from graftax.train.loop_config import LoopConfig

RNG = jax.random.key(5)
STEPS = 6  # of 8 images of 16 tokens: 768 tokens for at most 193 features


def original() -> Model:
    return teacher(depth=2)


@functools.cache
def fitted(of: Model, grafted: Model, steps: int = STEPS, **options: Any) -> Model:
    return calibrate(of, grafted, Stream(), steps, FAST, rng=RNG, show=False, **options)


@functools.cache
def grafted() -> Model:
    """Scions of three kinds, of both roles."""
    edits = replace("blocks[1].mixer", "hyena_x"), replace("blocks[0].mixer", "swa"), replace("blocks[0].mlp", "mlp")
    return student(original(), *edits)


@functools.cache
def all_tokens(of: Model) -> dict[str, tuple[jax.Array, jax.Array]]:
    """What `calibrate` sees at every site: all inputs and targets (rows of images, n, d)."""
    groups = group_sites(of.spec, all_sites(of.spec, "mixer", "channel"))
    source = Teacher(of.spec, groups, Process(), FAST)
    prepared, sample = source.prepare(of.params), jax.jit(source.sample_pairs)
    parts: dict[str, list[tuple[jax.Array, jax.Array]]] = {}
    for i in range(STEPS):
        found, _ = sample(prepared, batch(i)["image"], source.condition(batch(i)), jax.random.fold_in(RNG, i))
        for name, group in groups.items():
            for site, x, y in zip(group.sites, *map(np.asarray, found[name]), strict=True):
                parts.setdefault(str(site), []).append((x, y))
    return {site: tuple(jnp.concatenate(side) for side in zip(*pairs, strict=True)) for site, pairs in parts.items()}


def at(model: Model, site: str) -> tuple[Operator, dict[str, Any]]:
    (chosen,) = select(site, model.spec)
    block, weights = model.spec.blocks[chosen.block], model.params["blocks"][f"{chosen.block:02d}"][chosen.slot]
    return build(model.spec, block.kind, chosen.slot, block[chosen.slot]), weights


def residual(of: Model, model: Model, site: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and error of a scion on the calibration data, flat (rows, p) and (rows, d)."""
    x, target = all_tokens(of)[site]
    out, features = apply_with_features(*at(model, site), x)
    return np.asarray(features).reshape(-1, features.shape[-1]), np.asarray(target - out).reshape(-1, out.shape[-1])


SOLVED = [kind for kind, cls in ops.OPERATORS.items() if cls.role in ("mixer", "channel") and cls.readout]


@pytest.mark.parametrize("kind", SOLVED)
def test_every_operator_is_linear_in_its_last_layer(kind: str) -> None:
    sizes = tiny_spec().sizes
    scion = op(kind, rank=8) if kind == "mlp_low_rank" else op(kind)  # whose default is too wide here
    operator = ops.build(ops.resolve(scion, ops.OPERATORS[kind].role, sizes), sizes)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 16, 48), np.float32)
    weights = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes_of(operator))
    reads = operator.example()[1]
    out, features = jax.jit(functools.partial(apply_with_features, operator, **reads))(weights, x)
    layer = weights[operator.readout]
    factors = [layer] if "kernel" in layer else [layer["down"], layer["up"]]
    for factor in factors:
        features = features @ factor["kernel"] + factor.get("bias", 0)
    np.testing.assert_allclose(features, out, atol=1e-5)


def spoilt(model: Model, sites: tuple[Site, ...]) -> Model:
    """The model with other numbers in the last layers of some operators."""
    blocks = dict(model.params["blocks"])
    for site in sites:
        key, (operator, weights) = f"{site.block:02d}", at(model, str(site))
        layer = jax.tree.map(lambda a: 3 * jnp.cos(7.0 * jnp.arange(a.size)).reshape(a.shape), weights[operator.readout])
        blocks[key] = {**blocks[key], site.slot: {**weights, operator.readout: layer}}
    return model.replace(params={**model.params, "blocks": blocks})


@pytest.mark.parametrize("selector", ["blocks[0,1].mixer", pytest.param("blocks[1].mlp", marks=pytest.mark.slow)])
def test_a_spoilt_last_layer_is_recovered(selector: str) -> None:
    sites = select(selector, original().spec)
    found = fitted(original(), spoilt(original(), sites), sites=sites)
    for site in map(str, sites):
        operator, weights = at(found, site)
        truth = at(original(), site)[1][operator.readout]
        assert_trees_close(weights[operator.readout], truth, rtol=0, atol=0.02)  # from errors of 3
        x, target = all_tokens(original())[site]
        error = operator.apply({"params": weights}, x) - target
        assert float(jnp.linalg.norm(error) / jnp.linalg.norm(target)) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("site", ["blocks[0].mixer", "blocks[1].mixer", "blocks[0].mlp"])
def test_one_pass_over_all_sites_is_the_solution_of_each_in_one_go(site: str) -> None:
    found = fitted(original(), grafted())
    features, error = residual(original(), grafted(), site)
    rows = np.concatenate([features, np.ones((len(features), 1))], axis=1, dtype=np.float64)
    change = np.linalg.lstsq(rows, error.astype(np.float64), rcond=None)[0]
    (operator, before), (_, after) = at(grafted(), site), at(found, site)
    expected = before[operator.readout]["kernel"] + change[:-1], before[operator.readout]["bias"] + change[-1]
    layer = after[operator.readout]
    np.testing.assert_allclose(rows @ np.vstack([layer["kernel"], layer["bias"]]), rows @ np.vstack(expected), atol=5e-3)
    # No other last layer has less squared error: at the minimum of a convex function its gradient vanishes, errors are
    # orthogonal to every feature, and to 1.
    _, left = residual(original(), found, site)
    assert np.square(left).sum() < 0.9 * np.square(error).sum()
    cosine = features.T @ left / np.outer(np.linalg.norm(features, axis=0), np.linalg.norm(left, axis=0))
    assert np.abs(cosine).max() < 2e-3
    assert np.abs(left.mean(0)).max() < 1e-4 * np.abs(left).max()


def test_all_but_last_layers_stay() -> None:
    found = fitted(original(), grafted())
    assert_same_leaves(
        grafted().params, found.params, ["blocks/01/mixer/out_proj", "blocks/00/mixer/proj", "blocks/00/mlp/fc2"]
    )
    assert (found.spec, found.meta) == (grafted().spec, grafted().meta)


def test_a_scion_that_is_right_already_stays() -> None:
    wide = student(original(), resize("blocks[1].mlp", 6, init="transplant"))  # copies: the features are collinear
    found = fitted(original(), wide)
    assert_trees_close(found.params, wide.params, rtol=0, atol=1e-4)


class Plain(Operator):
    """x -> x W: a last layer without bias, and nothing before it."""

    kind = "plain"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.width, use_bias=False, name="out_proj")(x)


@pytest.mark.slow
def test_a_layer_without_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ops.OPERATORS, "plain", Plain)
    of, site = original(), str(Site(1, "mixer"))
    blocks = (of.spec.blocks[0], of.spec.blocks[1].with_op("mixer", op("plain")))
    last = {**of.params["blocks"]["01"], "mixer": {"out_proj": {"kernel": jnp.zeros((48, 48))}}}
    plain = Model(of.spec.replace(blocks=blocks), {**of.params, "blocks": {**of.params["blocks"], "01": last}})
    found = fitted(of, plain, sites=site)
    x, target = (np.asarray(a, np.float64).reshape(-1, 48) for a in all_tokens(of)[site])
    layer = at(found, site)[1]["out_proj"]
    assert layer.keys() == {"kernel"}
    np.testing.assert_allclose(layer["kernel"], np.linalg.lstsq(x, target, rcond=None)[0], atol=2e-3)


def test_importance_is_the_power_of_each_neurons_term() -> None:
    found = neuron_importance(original(), Stream(), STEPS, "blocks[0,1].mlp", FAST, rng=RNG, show=False)
    assert set(found) == {"blocks[0].mlp", "blocks[1].mlp"}
    x, _ = all_tokens(original())["blocks[1].mlp"]
    weights = original().params["blocks"]["01"]["mlp"]
    hidden = nn.gelu(x @ weights["fc1"]["kernel"] + weights["fc1"]["bias"], approximate=True)
    for j in (0, 77, 191):
        term = hidden[..., j : j + 1] * weights["fc2"]["kernel"][j]
        assert found["blocks[1].mlp"][j] == pytest.approx(float(jnp.square(term).sum(-1).mean()), rel=1e-4)


@functools.cache
def linearised() -> Model:
    """The model with linear maps in place of all its operators, those of the second block of rank 5."""
    full = replace("blocks[0].mixer", "affine"), replace("blocks[0].mlp", "affine_mlp")
    low = replace("blocks[1].mixer", "affine", rank=5), replace("blocks[1].mlp", "affine_mlp", rank=5)
    return fitted(original(), student(original(), *full, *low))


@pytest.mark.parametrize("site", ["blocks[0].mixer", "blocks[0].mlp", "blocks[1].mixer", "blocks[1].mlp"])
def test_affine_maps_reach_the_optimum_of_their_rank(site: str) -> None:
    x, y = (np.asarray(a, np.float64).reshape(-1, 48) for a in all_tokens(original())[site])
    operator, weights = at(linearised(), site)
    out = np.asarray(operator.apply({"params": weights}, x.astype(np.float32)))
    centred, wanted = x - x.mean(0), y - y.mean(0)
    best = centred @ np.linalg.lstsq(centred, wanted, rcond=None)[0]
    if "[1]" in site:  # the nearest of rank 5 to the fitted values is also the nearest to the targets
        left, values, right = np.linalg.svd(best, full_matrices=False)
        best = (left[:, :5] * values[:5]) @ right[:5]
    assert np.linalg.norm(out - y) == pytest.approx(np.linalg.norm(best - wanted), rel=1e-4)
    assert np.linalg.norm(out - y.mean(0) - best) < 1e-4 * np.linalg.norm(best)
    assert np.linalg.norm(best - wanted) < 0.95 * np.linalg.norm(wanted)


@pytest.mark.slow
def test_important_neurons_start_better_than_others_and_least_squares_better_still() -> None:
    one = teacher(depth=1)
    importance = neuron_importance(one, Stream(), STEPS, config=FAST, rng=RNG, show=False)
    least = {site: -values for site, values in importance.items()}
    edits = [resize("blocks[*].mlp", 3, init="transplant", importance=i) for i in (importance, least)]
    best, worst, random = (student(one, edit) for edit in (*edits, resize("blocks[*].mlp", 3)))
    jobs = [distill_job(one, model, FAST, heldout=batch(99, 32)) for model in (fitted(one, best), best, worst, random)]
    evaluate = jobs[0].evaluate  # of one spec all, so compiled once
    assert evaluate is not None
    errors = [float(evaluate(job.init())["error"]) for job in jobs]
    assert errors == sorted(errors), errors


@pytest.mark.slow
def test_distillation_can_start_with_it() -> None:
    simple, loop = student(original(), replace("blocks[1].mixer", "hyena_x")), LoopConfig(steps=2, eval_every=1)
    seen: dict[int, tuple[float, list[int]]] = {}
    for calibration in (0, STEPS):
        config, read = dataclasses.replace(FAST, steps=2, calibration=calibration, learning_rate=1e-6), []
        _, history = distill(original(), simple, Stream(read.append), config, loop, heldout=batch(99), show=False)
        seen[calibration] = history[0]["error"], read
    assert seen[STEPS][0] < 0.9 * seen[0][0]
    assert seen[STEPS][1] == [*range(STEPS), *seen[0][1]]  # and then trains on the same batches


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, s: calibrate(t, s, Stream(), 0, show=False), "calibration steps: got 0"),
        (lambda t, s: calibrate(t, s, iter([batch(0)]), 2, show=False), "data ended after 1 of 2"),
        (lambda t, s: calibrate(t, t, Stream(), 1, show=False), "the student has no scions in its meta"),
        (lambda t, s: neuron_importance(t, Stream(), 1, "blocks[1].mixer", show=False), r"blocks\[1\].mixer: holds mha"),
        (lambda t, s: neuron_importance(t, Stream(), 0, show=False), "calibration steps: got 0"),
        (lambda t, s: dataclasses.replace(FAST, calibration=-1), "calibration: got -1"),
    ],
)
def test_refused(call: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        call(original(), grafted())


# --- Scales -----------------------------------------------------------------------------------------------------------


def test_scales_of_norms_and_of_queries_are_the_least_squares_ones():
    """Against lstsq, channel by channel, on all that the teacher's norms and attentions see; no other weight changes."""
    norms, heads = "rms_norm", "mha_normed"
    edits = replace("blocks[0].norm", norms, affine=True), replace("blocks[1].mixer", heads, init="transplant")
    start = student(original(), *edits)
    found = calibrate(original(), start, Stream(), STEPS, FAST, sites="blocks[0].norm", rng=RNG, show=False)
    assert_same_leaves(start.params, found.params, ["blocks/00/norm1", "blocks/00/norm2", "blocks/00/adaln"])
    old, new = (model.params["blocks"]["00"]["adaln"] for model in (start, found))
    groups = group_sites(original().spec, select("blocks[0].norm", original().spec))
    source = Teacher(original().spec, groups, Process(), FAST)
    prepared, sample = source.prepare(original().params), jax.jit(source.sample_pairs)
    keys = [jax.random.fold_in(RNG, i) for i in range(STEPS)]
    rows = [sample(prepared, batch(i)["image"], source.condition(batch(i)), key)[0] for i, key in enumerate(keys)]
    for name, group in groups.items():
        x, y = (np.concatenate([np.asarray(row[name][side][0]) for row in rows]).reshape(-1, 48) for side in (0, 1))
        normed = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)
        from_mean = normed - normed.mean(0)
        scale = (from_mean * y).sum(0) / np.square(from_mean).sum(0)
        np.testing.assert_allclose(found.params["blocks"]["00"][group.slot]["scale"], scale, rtol=1e-3, atol=1e-4)
        constant, (shift, by) = y.mean(0) - scale * normed.mean(0), {"norm1": (0, 1), "norm2": (3, 4)}[group.slot]
        vec = np.random.default_rng(0).standard_normal((3, 48))
        was, now = ((vec @ p["kernel"] + p["bias"]).reshape(3, 6, 48) for p in (old, new))
        np.testing.assert_allclose(now[:, shift], was[:, shift] + constant * (1 + was[:, by]), rtol=1e-3, atol=1e-3)
    both = calibrate(original(), start, Stream(), STEPS, FAST, rng=RNG, show=False)
    x, _ = all_tokens(original())["blocks[1].mixer"]
    operator, weights = at(start, "blocks[1].mixer")
    q = np.asarray(operator.apply({"params": weights}, x, method="heads_of")[0]).reshape(-1, operator.sizes.head_dim)
    normed = q / np.sqrt(np.square(q).mean(-1, keepdims=True) + 1e-6)
    expected = (normed * q).sum(0) / np.square(normed).sum(0)
    mixer = both.params["blocks"]["01"]["mixer"]
    np.testing.assert_allclose(mixer["q_norm"]["scale"], expected, rtol=1e-4)
    assert mixer["qkv"]["kernel"] is start.params["blocks"]["01"]["mixer"]["qkv"]["kernel"]
    assert not np.array_equal(mixer["proj"]["kernel"], start.params["blocks"]["01"]["mixer"]["proj"]["kernel"])
    assert_trees_close(both.params["blocks"]["00"], found.params["blocks"]["00"])


def test_what_has_neither_scales_nor_a_last_layer_is_refused():
    start = student(original(), replace("blocks[0].norm1", "rms_norm", affine=True))
    with pytest.raises(BadInput, match=r"blocks\[1\]\.norm1 has no input and output to learn from"):
        calibrate(original(), start, Stream(), 1, FAST, sites="blocks[1].norm1", rng=RNG, show=False)
