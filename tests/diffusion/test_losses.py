"""Losses of every path and prediction as the reference code computes them, their weights, and terms beside them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.diffusion import Flow, Objective, Process, Times
from graftax.errors import BadInput
from graftax.models.forward import forward
from graftax.models.prediction import Interface, as_called
from graftax.paths import Level, level, time_on
from graftax.spec import Prediction

MODERN = Path(__file__).parents[1] / "goldens" / "modern"
PATHS = {"Linear": "linear", "GVP": "gvp", "VP": "vp"}
TARGETS = {"velocity": "velocity", "noise": "eps", "score": "score"}


@pytest.fixture(scope="module")
def sit():
    """SiT's losses, channels last, and what its network gives at each path's x_t, as its samplers call it."""
    with np.load(MODERN / "sit_losses.npz") as file:
        found = {name: last(file[name]) for name in file.files}
    model = graftax.load(MODERN / "sit.pt", layout="sit", num_heads=4)

    @jax.jit
    def network(x):
        return forward(model.spec, model.params, x, found["t"], {"y": found["y"]})[0][..., :4]

    return found, {name: network(found[f"{name}.xt"]) for name in PATHS}


def last(array):
    """Images of the goldens, channels-first, and anything else as it is."""
    return jnp.moveaxis(jnp.asarray(array), -3, -1) if array.ndim > 2 else jnp.asarray(array)


def close(found, expected, tolerance=1e-5):
    """Relative to the largest number, as the goldens' tolerances are stated."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * float(np.abs(expected).max()))


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", PATHS)
def test_losses_of_the_reference(sit, name, kind):
    """A network's output read as velocity, noise or score of each path: SiT counts the data's fraction."""
    g, outs = sit
    prediction = Prediction(TARGETS[kind], "data", True, path=PATHS[name])
    flow, t = Flow.of(prediction), 1 - g["t"]
    close(flow.q_sample(g["x_data"], t, g["x_noise"]), g[f"{name}.xt"])
    out = as_called(prediction, lambda x, t, cond: outs[name])(g[f"{name}.xt"], t, None)
    for weighting in ("none", "velocity", "likelihood"):
        objective = Objective.parse(weighting)
        if kind == "velocity" and weighting != "none":
            with pytest.raises(BadInput, match=f"weighting '{weighting}' of 'velocity'"):
                flow.training_losses(out, g["x_data"], t, g["x_noise"], objective)
            continue
        losses = flow.training_losses(out, g["x_data"], t, g["x_noise"], objective)
        close(losses["loss"], g[f"{name}.{kind}.{weighting}.loss"], 3e-5)
    np.testing.assert_allclose(flow.ends, 1 - g[f"{name}.{kind}.train_interval"][::-1], atol=1e-6)


@pytest.mark.parametrize("name", PATHS)
def test_conversions_of_the_reference(sit, name):
    g, _ = sit
    path, t, x, probe = PATHS[name], 1 - g["t"], g[f"{name}.xt"], g["probe_velocity"]

    def turned(given, wanted):
        return Interface(Prediction(given, "data", path=path), wanted, path).leave(probe, x, t)

    close(turned("velocity", "score"), g[f"{name}.score_from_probe"], 1e-4)
    close(turned("velocity", "eps"), g[f"{name}.noise_from_probe"], 1e-4)
    close(-turned("score", "velocity"), g[f"{name}.velocity_from_score_probe"], 1e-4)


def test_edm_of_the_reference():
    with np.load(MODERN / "edm.npz") as file:
        g = {name: last(file[name]).astype(jnp.float32) for name in ("x", "denoised", "loss_img", "loss_noise")}
        g |= {name: jnp.asarray(file[name]) for name in ("y", "sigma", "loss_sigma", "loss_elementwise_mean")}
    model = graftax.load(MODERN / "tread.pt", num_heads=4)
    network = jax.jit(as_called(model.spec.prediction, lambda x, t, y: forward(model.spec, model.params, x, t, {"y": y})[0]))
    close(network(g["x"], g["sigma"].astype(jnp.float32), g["y"]), g["denoised"])
    flow, t = Flow.of(model.spec.prediction), g["loss_sigma"].astype(jnp.float32)
    out = network(flow.q_sample(g["loss_img"], t, g["loss_noise"]), t, g["y"])
    close(flow.training_losses(out, g["loss_img"], t, g["loss_noise"])["loss"], g["loss_elementwise_mean"])


def test_rectified_flow_of_tread():
    """The same network read as a velocity at noise fractions: losses at logit-normal times, and five steps of Euler."""
    with np.load(MODERN / "tread.npz") as file:
        g = {name: last(file[name]) for name in file.files if name.startswith("rf_")} | {"y": jnp.asarray(file["y"])}
    edm, prediction = graftax.load(MODERN / "tread.pt", num_heads=4), Prediction("velocity", "noise", False, path="linear")
    model, flow = edm.replace(spec=edm.spec.replace(prediction=prediction)), Flow.of(prediction)
    t = jax.nn.sigmoid(g["rf_z"])
    x_t = flow.q_sample(g["rf_x_data"], t, g["rf_x_noise"])
    close(flow.training_losses(model(x_t, t, g["y"]), g["rf_x_data"], t, g["rf_x_noise"])["loss"], g["rf_loss"])
    drawn = graftax.sample(model, g["y"], sampler="euler", steps=5, cfg_scale=1.0, initial_noise=g["rf_z_init"])
    close(drawn, g["rf_euler_5"])


@pytest.fixture(scope="module")
def scalars():
    with np.load(MODERN / "scalars.npz") as file:
        return dict(file)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr(scalars, gamma):
    """The weight of x0's error, whatever is predicted; DDPM's v is GVP's velocity per pi / 2."""
    kept, objective = jnp.asarray(scalars["ddpm_alphabar"]), Objective("min_snr", gamma)
    at = Level(jnp.sqrt(kept), jnp.sqrt(1 - kept))
    for target in ("eps", "x0"):
        close(objective.weight(target, at), scalars[f"minsnr.{target}.gamma{gamma}"], 1e-6)
    gvp = level("gvp", time_on("gvp", at.fraction))
    close(objective.weight("velocity", gvp) * (np.pi / 2) ** 2, scalars[f"minsnr.v.gamma{gamma}"], 1e-6)


def test_min_snr_of_flows(scalars):
    at, objective = level("linear", jnp.asarray(scalars["flow_tau"])), Objective.parse("min_snr(5)")
    for target, name in {"x0": "x0", "eps": "eps", "velocity": "v_from_x0_weight"}.items():
        close(objective.weight(target, at), scalars[f"minsnr_flow.{name}.gamma5.0"], 1e-6)
    ends = level("linear", jnp.array([0.0, 1.0]))
    assert all(jnp.isfinite(objective.weight(target, ends)).all() for target in ("eps", "score", "velocity"))


def test_min_snr_weights_the_noise_of_ddpm_alone():
    process, t = Process(), jnp.array([50, 900])
    noise = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    out = jnp.concatenate([noise + 1, noise], -1)
    plain, weighted = (process.training_losses(out, 0 * noise, t, noise, Objective.parse(o)) for o in ("none", "min_snr(5)"))
    kept = process.tables.alpha_bar[np.asarray(t)]
    expected = np.minimum(1, 5 * (1 - kept) / kept) + weighted["vb"]
    np.testing.assert_allclose(weighted["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(plain["vb"], weighted["vb"])
    assert weighted["loss"][0] < plain["loss"][0]
    with pytest.raises(BadInput, match=r"objective: none \+ direction\(1\) of noise at steps"):
        process.training_losses(out, 0 * noise, t, noise, Objective.parse("none + direction(1)"))


def test_direction_and_contrast():
    """By hand: the cosine over channels, then its mean over space; away from the next sample's velocity, with its weight."""
    keys = jax.random.split(jax.random.key(3), 3)
    x0, noise, out = (jax.random.normal(key, (3, 4, 4, 8)) for key in keys)
    t, v = jnp.array([0.1, 0.5, 0.9]), np.asarray(noise - x0)
    objective = Objective.parse("none + direction(2) + contrast(0.05) + contrast_linear(0.1)")
    assert Objective.parse(str(objective)) == objective
    losses = Flow().training_losses(out, x0, t, noise, objective)
    found, true = (np.asarray(array) / np.linalg.norm(array, axis=-1, keepdims=True) for array in (out, v))
    direction = 2 * (1 - (found * true).sum(-1).mean((1, 2)))
    apart = ((np.asarray(out) - np.roll(v, 1, axis=0)) ** 2).mean((1, 2, 3))
    contrast = -(0.05 + 0.1 * np.asarray(t)) * apart
    np.testing.assert_allclose(losses["direction"], direction, rtol=1e-5)
    np.testing.assert_allclose(losses["contrast"], contrast, rtol=1e-5)
    np.testing.assert_allclose(losses["loss"], losses["mse"] + direction + contrast, rtol=1e-5)
    with pytest.raises(BadInput, match="of 'eps', expected a velocity"):
        Flow("linear", "eps").training_losses(out, x0, t, noise, objective)


def test_direction_has_a_gradient_where_a_fresh_model_begins():
    """Of a velocity of zero: away from the true one's, as PyTorch's `cosine_similarity` with its eps of 1e-8 has it."""
    true = jax.random.normal(jax.random.key(0), (1, 2, 2, 4))
    terms = Objective.parse("none + direction(1)").terms
    found = jax.grad(lambda v: terms(v, true, jnp.zeros(1))["direction"].sum())(jnp.zeros_like(true))
    expected = -1e8 / 4 * true / jnp.linalg.norm(true, axis=-1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_lognormal_times(scalars):
    """Of sigma: EDM's and REPA's, from one normal number; the linear path's are logit-normal."""
    key, times = jax.random.key(1), Times.parse("lognormal(-1.2, 1.2)")
    z = jax.random.normal(key, (1000,))
    np.testing.assert_allclose(Flow("edm", "x0").draw(key, 1000), jnp.exp(-1.2 + 1.2 * z), rtol=2e-5)
    np.testing.assert_allclose(Flow().draw(key, 1000, times), Times.parse("logit_normal(-1.2, 1.2)").draw(key, 1000))
    for path, name in {"linear": "linear", "gvp": "cosine"}.items():
        fraction = jax.nn.sigmoid(jnp.asarray(scalars["z"]))
        close(time_on(path, fraction), scalars[f"repa_lognormal.{name}"], 1e-6)
    close(time_on("edm", jax.nn.sigmoid(-1.2 + 1.2 * jnp.asarray(scalars["z"]))), scalars["edm_sigma"], 1e-6)
    steps = np.asarray(Process().draw(key, 1000, times))
    at = level("ddpm", np.maximum(steps - 1, 0))
    assert (at.sigma / at.alpha <= np.exp(-1.2 + 1.2 * np.asarray(z)) * 1.001 + 0.02).all()
    drawn = Flow("edm", "x0").draw(key, 1000, Times())
    assert 0.002 <= float(drawn.min()) < float(drawn.max()) <= 80.001


@pytest.mark.parametrize(
    "text",
    ["", "squared", "min_snr", "min_snr(0)", "min_snr(a)", "none(1)", "none + none", "none + direction", "direction(-1)"],
)
def test_objectives_that_are_none_are_refused(text):
    with pytest.raises(BadInput, match=r"^objective: got .*, expected 'none', 'velocity', 'likelihood' or 'min_snr"):
        Objective.parse(text)
