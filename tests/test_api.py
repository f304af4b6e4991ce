"""The public functions: arguments of every kind, numbers that are not finite, models as trees."""

import argparse
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax import api
from graftax.cli import options
from graftax.diffusion import SAMPLERS
from graftax.diffusion.names import LASTS, SPACINGS
from graftax.errors import BadInput, NonFinite
from graftax.evaluate.drawing import SampleConfig
from graftax.models.backbone import find
from graftax.spec import Prediction
from graftax.testing import random_params, tiny_spec
from graftax.testing.toy import Toy, toy_spec

LABELS = np.array([0, 1])


@pytest.fixture(scope="module")
def model():
    spec = tiny_spec(depth=2)
    return graftax.Model(spec, random_params(spec, jax.random.key(0)))


@pytest.fixture
def spoilt(model):
    """A model with one NaN."""
    bias = model.params["blocks"]["01"]["mixer"]["proj"]["bias"].at[3].set(jnp.nan)
    return model.replace(params=jax.tree.map(lambda a: bias if a.shape == bias.shape else a, model.params))


def draw(model, **settings):
    return graftax.sample(model, LABELS, **{"steps": 2, **settings})


def sampling_parser():
    parser = argparse.ArgumentParser()
    options.add_sampling(parser)
    return parser


def sampling_flags():
    """Choices of the command line's arguments."""
    return {action.option_strings[0]: action.choices for action in sampling_parser()._actions}


def on_the_command_line(spec, *arguments):
    return options.sampling_of(sampling_parser().parse_args(arguments), spec)


def inputs(model, count=1):
    return jnp.ones((count, *model.spec.image_shape)), jnp.ones(count), jnp.zeros(count, jnp.int32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "steps: -1, expected 2..1000"),
        ({"steps": 5.5}, "steps: got 5.5, expected an integer"),
        ({"rng": 0}, "rng: got 0, expected a key"),
        ({"rng": np.zeros(2)}, r"rng: got float64\(2,\), expected a key"),
        ({"cfg_channels": 1.5}, "cfg_channels: got 1.5, expected an integer"),
        ({"cfg_scale": "1.5"}, "cfg_scale: got '1.5', expected a number"),
        ({"dtype": "bf16"}, "dtype: got 'bf16', expected a float type like 'float32', 'bfloat16'"),
        ({"dtype": "int32"}, "dtype: got 'int32', expected a float type"),
    ],
)
def test_settings_of_sampling_are_refused_by_name(model, settings, message):
    with pytest.raises(BadInput, match=message):
        draw(model, **settings)


def test_old_and_new_keys_draw_the_same(model):
    new = draw(model, rng=jax.random.key(3))
    np.testing.assert_array_equal(draw(model, rng=jax.random.PRNGKey(3)), new)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(2))
    np.testing.assert_array_equal(draw(model, rng=jax.random.key_data(keys)), new)
    edit = graftax.replace("blocks[0].mixer", "hyena_x", kernel=2)
    old, typed = (graftax.graft(model, edit, make(5)) for make in (jax.random.PRNGKey, jax.random.key))
    jax.tree.map(np.testing.assert_array_equal, old.params, typed.params)


def test_zero_guided_channels_are_all_of_them():
    assert graftax.Sampling(cfg_channels=0) == graftax.Sampling(cfg_channels=None)


def test_the_command_line_has_the_defaults_of_python():
    assert on_the_command_line(tiny_spec()) == SampleConfig()
    assert SampleConfig().sampling == graftax.Sampling() == api.sampling_for(tiny_spec())
    for name, known in {"sampler": SAMPLERS, "spacing": SPACINGS, "last": LASTS}.items():
        assert sampling_flags()[f"--{name}"] == tuple(known)


@pytest.mark.parametrize("build", [tiny_spec, toy_spec])
def test_what_is_not_said_is_as_the_family_draws(build, monkeypatch):
    """In Python, on the command line and in the compiled step alike; what is said holds."""
    spec = build()
    own: dict[str, Any] = {"sampler": "dpmpp_2m", "steps": 20, "cfg_scale": 4.5, "cfg_channels": None}
    monkeypatch.setattr(type(find(spec)), "sampling", lambda self, spec: own)
    how = graftax.Sampling(**own)
    assert api.sampling_for(spec) == SampleConfig.of(spec).sampling == on_the_command_line(spec).sampling == how
    seven = dataclasses.replace(how, steps=7)
    assert api.sampling_for(spec, steps=7) == on_the_command_line(spec, "--steps=7").sampling == seven
    assert api.sampling_for(spec, graftax.Sampling()) == graftax.Sampling()
    assert SampleConfig.of(spec, seed=3, sampler="ddim") == SampleConfig(**{**own, "seed": 3, "sampler": "ddim"})
    assert on_the_command_line(spec, "--cfg-channels=2", "--batch-size=9").cfg_channels == 2
    assert str(how) in str(on_the_command_line(spec))


def test_a_model_draws_as_its_family_and_unlike_others(monkeypatch):
    spec = toy_spec(1, 1)
    model = graftax.Model(spec, random_params(spec, jax.random.key(0)))
    own: dict[str, Any] = {"sampler": "dpmpp_2m", "steps": 3, "cfg_scale": 2.0, "cfg_channels": None}
    given = graftax.sample(model, LABELS, **own)
    monkeypatch.setattr(Toy, "sampling", lambda self, spec: own)
    np.testing.assert_array_equal(graftax.sample(model, LABELS), given)
    tolerance = 2e-5 * float(jnp.abs(given).max())  # ten times what rounding makes of it
    others: tuple[dict[str, Any], ...] = ({"sampler": "sde_dpmpp_2m"}, {"last": "sigma_min"}, {"cfg_channels": 3})
    for other in others:
        assert float(jnp.abs(graftax.sample(model, LABELS, **other) - given).max()) > tolerance


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (Prediction(variance=False), "sampler 'ddpm': the model has no variance channels"),
        (Prediction(target="velocity"), r"expected noise \(eps\) at the times \(index\) of DDPM"),
        (Prediction(time="noise"), r"sampler 'ddpm': Prediction\(target='eps', time='noise'"),
        (Prediction("velocity", "noise"), r"expected noise \(eps\) at the times \(index\) of DDPM"),
    ],
)
def test_samplers_that_do_not_fit_a_models_prediction_are_refused(model, prediction, message):
    other = model.spec.replace(prediction=prediction)
    for refuse in (
        lambda: draw(model.replace(spec=other), sampler="ddpm"),
        lambda: graftax.sample(model.replace(spec=other), LABELS, sampling=graftax.Sampling(sampler="ddpm")),
        lambda: on_the_command_line(other, "--sampler=ddpm"),
    ):
        with pytest.raises(BadInput, match=message):
            refuse()


def test_euler_is_for_all_whose_velocity_is_known(model):
    spec = model.spec.replace(prediction=Prediction("velocity"))
    for refuse in (
        lambda: draw(model.replace(spec=spec), sampler="euler"),
        lambda: api.sampling_for(spec, graftax.Sampling(sampler="euler")),
        lambda: on_the_command_line(spec, "--sampler=euler"),
    ):
        with pytest.raises(BadInput, match=r"sampler 'euler': .*, expected noise \(eps\) or x0, or times that are no index"):
            refuse()
    for other in (Prediction(), Prediction(time="noise"), Prediction("edm", "log_sigma", False)):
        assert api.sampling_for(model.spec.replace(prediction=other), sampler="euler").flow


FLOWS = {
    "noise": Prediction("velocity", "noise", False), "scaled": Prediction("velocity", "noise", False, scale=1000),
    "data": Prediction("velocity", "data", False), "halves": Prediction("velocity", "data", True),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOWS)
def test_a_velocity_model_is_drawn_along_its_path(name):
    """As the formula reads, step by step, guided on all channels; the network's own times and sign."""
    spec, settings = toy_spec(1, 1).replace(prediction=FLOWS[name]), {"steps": 3, "shift": 3.0, "cfg_channels": None}
    assert api.sampling_for(spec, **settings).sampler == SampleConfig.of(spec).sampler == "euler"
    model = graftax.Model(spec, random_params(spec, jax.random.key(0)))
    x = start = jax.random.normal(jax.random.key(1), (2, *spec.image_shape))
    null = jnp.full(2, spec.classes)
    ends = [3 * s / (1 + 2 * s) for s in (1, 2 / 3, 1 / 3, 0)]
    for s, after in itertools.pairwise(ends):
        t = jnp.full(2, {"noise": s, "scaled": 1000 * s}.get(name, 1 - s))
        of_class, of_none = (model(x, t, y)[..., :4] for y in (jnp.asarray(LABELS), null))
        v = of_none + 2.5 * (of_class - of_none)
        x = x + (after - s) * (v if name in ("noise", "scaled") else -v)
    found = graftax.sample(model, LABELS, initial_noise=start, cfg_scale=2.5, **settings)
    np.testing.assert_allclose(found, x, atol=2e-5 * float(jnp.abs(x).max()))


def test_a_family_may_draw_other_sizes_otherwise(monkeypatch):
    spec = tiny_spec(depth=1).replace(prediction=Prediction("velocity", "noise", False))
    seen = []

    def own(self, spec):
        seen.append(spec.tokens)
        return {"steps": 2}

    monkeypatch.setattr(type(find(spec)), "sampling", own)
    model = graftax.Model(spec, random_params(spec, jax.random.key(0)))
    graftax.sample(model, LABELS, initial_noise=jnp.zeros((2, *spec.image_shape)))
    with pytest.raises(BadInput, match="initial_noise: x"):
        graftax.sample(model, LABELS, initial_noise=jnp.zeros((2, 16, 16, 4)))
    assert seen == [16, 64]


def test_a_model_without_variance_channels_draws():
    spec = tiny_spec(depth=1)
    spec = spec.replace(prediction=Prediction(variance=False))
    model = graftax.Model(spec, random_params(spec, jax.random.key(0)))
    for settings in ({"sampler": "ddim", "eta": 1.0}, {"sampler": "dpmpp_2m"}):
        assert draw(model, **settings).shape == (2, 8, 8, 4)


def test_edits_that_draw_nothing_need_no_key(model):
    lora = graftax.graft(model, graftax.lora("blocks[*].mixer", rank=1), jax.random.key(0))
    for start, edit in ((lora, graftax.merge_lora()), (model, graftax.drop(1)), (lora, graftax.inverse(model))):
        assert graftax.graft(start, edit).spec.depth == edit.on(start.spec).depth


def test_a_model_is_a_tree_of_its_parameters(model):
    x, t, y = inputs(model)
    np.testing.assert_allclose(jax.jit(lambda m: m(x, t, y))(model), model(x, t, y), rtol=1e-5, atol=1e-6)
    doubled = jax.tree.map(lambda a: 2 * a, model)
    assert (doubled.spec, doubled.meta) == (model.spec, model.meta)
    gradient = jax.grad(lambda m: m(x, t, y).sum())(model)
    assert jax.tree.map(jnp.shape, gradient.params) == jax.tree.map(jnp.shape, model.params)


def test_one_tap_by_its_name(model):
    _, taps = model.apply(*inputs(model), capture="mixer/in")
    assert list(taps) == ["mixer/in"]


def test_a_model_without_parameters_is_refused(model):
    with pytest.raises(BadInput, match=r"Model.params: keys \[\]"):
        model.replace(params={})(*inputs(model))


def test_weights_that_are_not_finite_are_refused_and_named(spoilt, tmp_path):
    graftax.save(spoilt, tmp_path / "model")
    with pytest.raises(NonFinite, match=r"weights blocks/\d\d/.*/bias and \d+ more: NaN or infinite as float32"):
        graftax.load(tmp_path / "model")


def test_weights_that_overflow_the_type_asked_for_are_refused(model, tmp_path):
    kernel = model.params["final"]["linear"]["kernel"].at[0, 0].set(1e6)
    final = {**model.params["final"], "linear": {**model.params["final"]["linear"], "kernel": kernel}}
    params = {**model.params, "final": final}
    graftax.save(model.replace(params=params), tmp_path / "model")
    assert graftax.load(tmp_path / "model").spec == model.spec
    with pytest.raises(NonFinite, match="weights final/linear/kernel: NaN or infinite as float16"):
        graftax.load(tmp_path / "model", dtype="float16")


def test_images_that_are_not_finite_are_refused(model, spoilt):
    with pytest.raises(NonFinite, match="images are not finite"):
        draw(spoilt)
    with pytest.raises(NonFinite, match="a weaker guidance than DDIM, 2 steps, guidance 1e\\+38"):
        draw(model, cfg_scale=1e38)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (3, "path: got 3, expected text or a path"),
        ("facebook/DiT-XL-2-256", "hf://facebook/DiT-XL-2-256 names it, or hf download facebook/DiT-XL-2-256 --local-dir"),
        ("weights/DiT-XL-2-256x256.pt", "published at https://"),
        ("DiT-XL-2-512x512", "published at https://"),
        ("nowhere", "'nowhere': no such file or folder$"),
    ],
)
def test_a_model_that_is_not_there_is_named_with_where_it_is_to_be_had(path, message):
    with pytest.raises(BadInput, match=message):
        graftax.load(path)
