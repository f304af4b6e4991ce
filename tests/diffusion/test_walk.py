"""Samplers of flows and EDM's, against the trajectories' ends of the reference codes, on their own small networks.

What tells one sampler from another is data, so all of a path and a prediction are drawn by one compiled loop.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import MEAN, STD, exact_edm, exact_flow, sample, x_init

import graftax
from graftax.diffusion import SamplerState, Sampling, Steps, Way, guided, schedule, way_for
from graftax.diffusion.schedule import Step, guidance_scales
from graftax.draw import Weak, sampler_steps
from graftax.errors import BadInput
from graftax.models.forward import forward_prepared, prepare_params
from graftax.models.policy import Policy, Route
from graftax.models.prediction import as_called
from graftax.spec import Prediction

MODERN = Path(__file__).parents[1] / "goldens" / "modern"
PATHS = {"Linear": "linear", "GVP": "gvp", "VP": "vp"}
TARGETS = {"velocity": "velocity", "noise": "eps", "score": "score"}
NEUTRAL = {
    "timestep": 0.5, "x_scale": 0.0, "out_scale": 0.0, "x0_weight": 0.0, "x_weight": 1.0, "before_weight": 0.0, "std": 0.0,
    "lift": 0.0, "number": 0, "ends": True, "guidance": 1.0,
}  # fmt: skip
"""A call of the model that changes nothing; what a sampler does not use has the same numbers."""


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of a file, images channels-last."""
    with np.load(MODERN / f"{name}.npz") as file:
        return {key: np.moveaxis(file[key], -3, -1) if file[key].ndim > 3 else file[key] for key in file.files}


def model_of(name: str, prediction: Prediction | None = None, **how: Any) -> graftax.Model:
    model = graftax.load(MODERN / f"{name}.pt", **how)
    return model if prediction is None else model.replace(spec=model.spec.replace(prediction=prediction))


def rows(sampling: Sampling, way: Way, calls: int) -> Step:
    """A schedule with every field, lengthened to so many calls by ones that change nothing."""
    step = schedule(sampling, way)._asdict()
    count = len(step["timestep"])
    usual = {**NEUTRAL, "number": np.arange(count), "ends": np.ones(count, bool), "guidance": sampling.cfg_scale}
    found = {name: np.broadcast_to(usual[name] if step[name] is None else step[name], count) for name in NEUTRAL}
    pad = {name: np.full(calls - count, NEUTRAL[name], found[name].dtype) for name in NEUTRAL}
    return Step(**{name: np.concatenate([found[name], pad[name]]) for name in NEUTRAL})


def draw_all(
    model: graftax.Model, samplings: list[Sampling], channels: int | None, z: Any, y: Any, noise: Any
) -> np.ndarray:  # fmt: skip
    """What each of the samplings draws, (k, b, h, w, c): one compiled loop, with the scale of guidance as data."""
    spec, way = model.spec, way_for(model.spec.prediction, samplings[0])
    calls = max(len(schedule(one, way).timestep) for one in samplings)
    steps = jax.tree.map(lambda *parts: np.stack(parts), *(rows(one, way, calls) for one in samplings))
    prepared = prepare_params(spec, model.params, "scan")
    network = as_called(
        spec.prediction, lambda x, t, y: forward_prepared(spec, prepared, x, t, {"y": y})[0], way.target, way.path
    )
    varies = len({(one.cfg_scale, one.interval) for one in samplings}) > 1
    scale = max(one.cfg_scale for one in samplings)
    guide = guided(network, scale, lambda y: jnp.full_like(y, spec.classes), channels, varies=varies)
    one = Steps(guide, samplings[0], way=way)
    noise, steps = jnp.asarray(noise, jnp.float32), steps if varies else steps._replace(guidance=None)

    def draw(steps: Step) -> jax.Array:
        def body(state: SamplerState, step: Step) -> tuple[SamplerState, None]:
            return one._advance(step, state, jnp.asarray(y), noise[step.number]), None

        return jax.lax.scan(body, one.start(jnp.asarray(z, jnp.float32)), steps)[0].x

    return np.asarray(jax.jit(jax.vmap(draw))(steps))


def close(found, expected, tolerance=1e-5, what=""):
    """Relative to the largest number, as the goldens' tolerances are stated."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * float(np.abs(expected).max()), err_msg=what)


def sit_sampling(key: str) -> Sampling:
    """`Linear.velocity.sigma.Euler.Mean` and the like: of SiT's points the last interval is ours too."""
    _, _, form, method, last, *norm = key.split(".", 5)
    sampler = {"Euler": "euler_maruyama", "Heun": "sde_heun"}[method]
    text = f"{form.lower()}({norm[0].removeprefix('norm')})" if norm else form.lower()
    return Sampling(
        sampler=sampler, steps=7 - (last == "None"), cfg_scale=1.5, last=last.lower(), diffusion=text
    )  # fmt: skip


QUICK = (("Linear", "velocity"),)
CASES = [
    pytest.param(path, kind, marks=[] if (path, kind) in QUICK else pytest.mark.slow) for path in PATHS for kind in TARGETS
]


@pytest.mark.parametrize(("path", "kind"), CASES)
def test_sit_of_the_reference(path, kind):
    """Euler and Heun, and every diffusion, method and last step that is finite there."""
    ode, sde = golden("sit_ode"), golden("sit_sde")
    model = model_of("sit", Prediction(TARGETS[kind], "data", True, path=PATHS[path]), layout="sit", num_heads=4)
    keys = [key for key in sde if key.startswith(f"{path}.{kind}.") and not key.endswith("trajectory")]
    straight = [Sampling(sampler=name, steps=8, cfg_scale=1.5) for name in ("euler", "heun")]
    noise = np.concatenate([sde["step_noise"], sde["step_noise"]])
    found = draw_all(model, [*map(sit_sampling, keys), *straight], 3, sde["z"], sde["y"], noise)
    for key, one in zip(keys, found, strict=False):
        close(one, sde[key], what=key)
    np.testing.assert_array_equal(ode["z"], sde["z"])
    close(found[-2], ode[f"{path}.{kind}.euler"])
    close(found[-1], ode[f"{path}.{kind}.heun2"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["velocity", "noise"])
def test_dopri5_of_the_reference(kind):
    """Against the reference with tolerances of 1e-8: its own, which these are, is off by up to 6e-4."""
    pytest.importorskip("diffrax")
    g = golden("sit_ode")
    model = model_of("sit", Prediction(TARGETS[kind], "data", True), layout="sit", num_heads=4)
    found = graftax.sample(model, g["y"], sampler="dopri5", initial_noise=g["z"], cfg_scale=1.5, cfg_channels=3)
    close(found, g[f"Linear.{kind}.dopri5_tight_f64"], 2e-3)


@pytest.mark.parametrize("path", [pytest.param("linear", marks=pytest.mark.slow), "cosine"])
def test_repa_of_the_reference(path):
    """Euler-Maruyama, Euler and Heun with an Euler step last, guided in an interval that is decided when a step begins."""
    g = golden("repa_samples")
    model = model_of("repa", Prediction("velocity", "noise", False, path={"cosine": "gvp"}.get(path, path)), num_heads=4)
    own = {"em": {"sampler": "euler_maruyama", "diffusion": "linear"}, "heun": {"sampler": "heun", "last": "euler"}}
    samplings, keys = [], [key for key in g if f".{path}." in key]
    for key in keys:
        method, scale, ends = key.split(".")[0], float(key.split("cfg")[1][:3]), key.split(".lo")[1].split(".hi")
        low, high = (np.tan(np.pi / 2 * one) if path == "cosine" else one / (1 - one or 1e-9) for one in map(float, ends))
        high = np.inf if high > 1e8 else high
        how = {"steps": 9, "cfg_scale": scale, "interval": (low, high), **own.get(method, {"sampler": method})}
        samplings.append(Sampling(**how))
    found = draw_all(model, samplings, None, g["z"], g["y"], np.concatenate([g["step_noise"], g["step_noise"]]))
    for key, one in zip(keys, found, strict=True):
        close(one, g[key], what=key)


def edm_sampling(key: str) -> Sampling:
    """`heun.cfg1.5.idx6-11`: steps by number, both ends inclusive; ours by sigma."""
    grid, how = golden("edm")["sigma_grid"], {"cfg_scale": float(key.split(".cfg")[1][:3]) if ".cfg" in key else 1.0}
    if ".idx" in key:
        first, last = map(int, key.split(".idx")[1].split("-"))
        how["interval"] = (grid[last + 1], grid[first])
    if "churn" in key:
        how["churn"] = (40.0, 0.05, 50.0, 1.003)
    return Sampling(sampler="edm_heun", steps=40 if "40steps" in key else 18, **how)


def test_edm_of_the_reference():
    """Guidance, intervals, churn; all channels."""
    g = golden("edm")
    np.testing.assert_allclose(Sampling(sampler="edm_heun", steps=18).times, g["sigma_grid"], rtol=1e-12)
    np.testing.assert_allclose(Sampling(sampler="edm_heun", steps=32).times, g["sigma_grid_32"], rtol=1e-12)
    keys = [key for key in g if key.startswith(("heun.cfg", "heun.churn", "tread_heun"))]
    model, samplings = model_of("tread", num_heads=4), list(map(edm_sampling, keys))
    found = draw_all(model, samplings, None, g["z"], g["y_sample"], g["churn_noise"])
    for key, one in zip(keys, found, strict=True):
        close(one, g[key], what=key)


def test_a_weak_model_guides_as_in_the_reference():
    """Autoguidance through the whole of `graftax.sample`."""
    g, model, bad = golden("edm"), model_of("tread", num_heads=4), model_of("edm_bad", num_heads=2)
    how: dict[str, Any] = {"steps": 18, "cfg_scale": 2.1, "cfg_channels": None, "initial_noise": g["z"]}
    close(graftax.sample(model, g["y_sample"], weak="model", weak_model=bad, **how), g["heun.autoguidance2.1"])
    with pytest.raises(BadInput, match="weak_model: none given with weak 'model'"):
        graftax.sample(model, g["y_sample"], weak="model", **how)
    with pytest.raises(BadInput, match="weak_model: one given with weak 'null'"):
        graftax.sample(model, g["y_sample"], weak_model=bad, **how)


@pytest.mark.slow
def test_the_sampler_of_tread_is_edms():
    g, model = golden("edm"), model_of("tread", num_heads=4)
    for key in ("tread_sampler.cfg1.5", "tread_sampler.cfg1.5.40steps"):
        sampling = dataclasses.replace(edm_sampling(key), cfg_channels=None)
        close(graftax.sample(model, g["y_sample"], sampling=sampling, initial_noise=g["z"]), g[key])


def test_a_policy_weakens_the_model_itself():
    """TREAD's routed guidance: away from passes whose tokens go around the blocks in between, drawn again the same."""
    model, policy = model_of("tread", num_heads=4), Policy(routes=(Route(1, 4, 0.75),))
    how: dict[str, Any] = {"steps": 3, "cfg_channels": None, "cfg_scale": 1.5, "weak": "policy", "weak_policy": policy}
    one, again, plain = (
        graftax.sample(model, np.array([1, 1]), rng=jax.random.key(1), **{**how, **more})
        for more in ({}, {}, {"weak": "skip", "skip": (1, 2, 3, 4), "weak_policy": None})
    )
    np.testing.assert_array_equal(one, again)
    assert float(jnp.abs(one - plain).max()) > 1e-3
    with pytest.raises(BadInput, match="weak_policy: none given with weak 'policy'"):
        graftax.sample(model, np.array([1]), **{**how, "weak_policy": None})


def test_routed_guidance_is_the_references():
    """The same network with three of four tokens around its blocks, which ones the reference's numbers say. Its arrays are
    those of the network within EDM's preconditioner, which is affine, so that guidance may be inside of it."""
    g, model, policy = golden("tread"), model_of("tread", num_heads=4), Policy(routes=(Route(2, 4, 0.75),))
    how = Sampling(sampler="edm_heun", steps=2, cfg_scale=1.5, cfg_channels=None, weak="policy")
    draws = {"routes": g["uniforms_0"][:, None]}  # (b, routes, n)
    assert (policy.kept(model.spec, draws, 2) == np.sort(g["ids_keep.single_2_4_r0.75.0"], axis=1)).all()
    sigma = np.exp(4 * g["t"])
    wide = sigma[:, None, None, None]
    root = np.sqrt(wide**2 + 0.25)
    cond = {"y": np.where(g["label_dropped"] > 0, model.spec.classes, g["y"])}

    @jax.jit
    def run(params, x, sigma, cond):
        plain, cut = (prepare_params(model.spec, params, cuts=cuts) for cuts in ((), policy.cuts))
        return sampler_steps(model.spec, plain, how, weak=Weak(model.spec, cut, policy), keys=draws).model_fn(x, sigma, cond)

    close(run(model.params, g["x"] * root, sigma, cond), (0.25 * g["x"] + 0.5 * wide * g["routed_guidance_w1p5"]) / root)


def test_orders_on_gaussian_data():
    """x of N(MEAN, STD^2) data flows to MEAN + STD x: twice the steps, a quarter of the error of second order."""
    ends = MEAN + STD * x_init()

    def worst(model, sampler, steps, **how):
        return float(jnp.abs(sample(model, steps, sampler=sampler, **how) - ends).max())

    for model, sampler in ((exact_flow, "heun"), (exact_flow, "midpoint"), (exact_edm, "edm_heun")):
        assert 1.7 < np.log2(worst(model, sampler, 8) / worst(model, sampler, 16)) < 3, sampler
    assert worst(exact_flow, "dopri5", 50, tolerance=(1e-5, 1e-5)) < 1e-3


def test_calls_outside_of_the_interval_are_single():
    """Three of six steps are guided, both calls of each; elsewhere no second pass is computed."""
    seen: list[int] = []

    def model(x, t, y):
        jax.debug.callback(lambda count: seen.append(int(count)), jnp.asarray(len(x)), ordered=True)
        return x * t[:, None, None, None]

    how = Sampling(sampler="heun", steps=6, cfg_scale=2.0, interval=(0.3, 1.5))
    guide = guided(model, 2.0, lambda y: y, None, varies=True)
    x = jax.jit(lambda x: Steps(guide, how).scan(x, jnp.zeros(2, int), None, None))(jnp.ones((2, 2, 2, 1)))
    jax.block_until_ready(x)
    jax.effects_barrier()
    assert how.times[:-1] / (1 - how.times[:-1] + 1e-9) == pytest.approx([1e9, 5, 2, 1, 0.5, 0.2], rel=1e-3)
    assert seen == [2] * 6 + [4] * 4 + [2] * 2


def test_power_cosine_guidance():
    g = golden("scalars")
    how = Sampling(sampler="euler", steps=8, cfg_scale=4.0, cfg_power=4.0)
    np.testing.assert_allclose(g["progress"][:-1], np.arange(8) / 8, atol=1e-12)
    np.testing.assert_allclose(guidance_scales(how, Way()), g["power_cosine.w4.s4"][:-1], rtol=1e-6)
    with pytest.raises(BadInput, match=r"cfg_power: 4.0 with 'dopri5'"):
        Sampling(sampler="dopri5", cfg_power=4.0)


@pytest.mark.parametrize(
    ("prediction", "how", "where"),
    [
        (Prediction("velocity", "data"), {"diffusion": "sbdm"}, "fraction 1 of the path 'linear'"),
        (Prediction("velocity", "data", path="gvp"), {"diffusion": "sbdm"}, "fraction 1 of the path 'gvp'"),
        (Prediction("velocity", "data"), {"sampler": "sde_heun", "last": "none"}, "fraction 0 of the path 'linear'"),
    ],
)
def test_steps_that_are_not_finite_are_refused(prediction, how, where):
    sampling = Sampling(**{"sampler": "euler_maruyama", "steps": 6, **how})
    with pytest.raises(BadInput, match=rf"^sampler '{sampling.sampler}': diffusion .* not finite at the noise {where}"):
        schedule(sampling, way_for(prediction, sampling))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"interval": (2.0, 0.5)}, r"interval: got \(2.0, 0.5\), expected two values of sigma / alpha, rising"),
        ({"interval": (-1, 0.5)}, "interval: got"),
        ({"interval": 2.0}, "interval: got 2.0, expected 2 numbers from 0"),
        ({"interval": (float("nan"), 2.0)}, "interval: got .* expected 2 numbers from 0"),
        ({"sampler": "euler_maruyama", "diffusion": "sbmd"}, "diffusion: got sbmd, expected one of"),
        ({"sampler": "euler_maruyama", "diffusion": "sigma(-1)"}, "diffusion: got sigma"),
        ({"diffusion": "sbdm"}, "diffusion: 'sbdm' with 'ddim'"),
        ({"sampler": "sde_heun", "last": "sigma_min"}, "expected 'linspace' and 'mean' or 'tweedie' or 'euler' or 'none'"),
        ({"sampler": "euler", "last": "euler"}, "last 'euler' with 'euler'"),
        ({"last_size": 0.0}, "last_size: got 0.0"),
        ({"churn": (40, 0.05, 50, 1.003)}, "churn: got .* with 'ddim'"),
        ({"sampler": "edm_heun", "churn": (40, 50, 0.05, 1)}, "S_min below S_max"),
        ({"sampler": "edm_heun", "steps": 1}, "sampling steps: 1, expected 2 or more"),
        ({"sampler": "dopri5", "shift": 3.0}, "shift: 3.0 with 'dopri5'"),
        ({"weak": "skip"}, "weak: got 'skip' with skip"),
        ({"weak": "representation", "skip": (1,)}, "weak: got 'representation' with skip"),
        ({"weak": "model", "cfg_scale": 1.0}, "weak: got 'model' and no guidance"),
        ({"sampler": "heun", "skip": (1,)}, "skip: got .* with 'heun', expected a sampler that calls the model once"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(BadInput, match=message):
        Sampling(**fields)


def test_settings_in_words():
    how = Sampling(sampler="euler_maruyama", steps=250, cfg_scale=1.8, cfg_channels=None, interval=(0, 2.33))
    assert str(how) == (
        "Euler-Maruyama, 250 steps, last mean 0.04, diffusion sigma, guidance 1.8 on all channels, "
        "for sigma/alpha in (0, 2.33]"
    )
    assert str(Sampling(sampler="dopri5", cfg_scale=1.0)) == "Dormand-Prince 5, tolerance 0.001, 1e-06, no guidance"
