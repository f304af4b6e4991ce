"""Flows: the straight path and its loss, Euler's trajectories of the reference code, times that are trained at."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import MEAN, SHAPE, STD, Y, exact_flow, sample, x_init

from graftax.backbones.times import resolution_shift
from graftax.diffusion import Flow, Process, SamplerState, Sampling, Steps, Times, denoise, heldout_set, shifted
from graftax.errors import BadInput

GOLDENS = Path(__file__).parents[1] / "goldens"
RUNS: dict[str, dict[str, Any]] = {
    "flux_schnell_4": {"steps": 4},
    "flux_dev_20_512": {"steps": 20, "shift": resolution_shift(32 * 32)},
    "flux_dev_28_1024": {"steps": 28, "shift": resolution_shift(64 * 64)},
    "sd3_28": {"steps": 28, "spacing": "sd3", "shift": 3.0},
    "auraflow_50": {"steps": 50, "spacing": "sd3", "shift": 1.73},
}
KEY = jax.random.key(2)


@functools.cache
def golden(run: str) -> dict[str, np.ndarray]:
    """Trajectory x, channels-last, the times that the scheduler counts 0..1000, and the noise fractions."""
    with np.load(GOLDENS / "flow.npz") as file:
        found = {name: file[f"{run}/{name}"] for name in ("x", "t", "sigmas")}
    return {**found, "x": np.moveaxis(found["x"], 2, -1)}


def sampling_of(**fields: Any) -> Sampling:
    return Sampling(**{"sampler": "euler", "cfg_scale": 1.0, **fields})


def closed_form(x, t, cond):
    """The velocity of the reference trajectories, of the noise fraction."""
    return 0.3 * x + 0.1 * jnp.sin(10 * t)[:, None, None, None]


@pytest.mark.parametrize("run", RUNS)
def test_trajectories_of_the_reference(run):
    """diffusers' scheduler as the pipelines of Flux, SD3 and AuraFlow set it; relative to the scale, about 3."""
    g, how = golden(run), sampling_of(**RUNS[run])
    np.testing.assert_allclose(how.times, g["sigmas"], atol=1e-6)
    np.testing.assert_allclose(1000 * how.timesteps, g["t"], atol=1e-3)
    assert how.timesteps.dtype == np.float32
    step, state = jax.jit(Steps(closed_form, how)), SamplerState.begin(jnp.asarray(g["x"][0]))
    tolerance = 1e-5 * float(np.abs(g["x"]).max())
    for i, expected in enumerate(g["x"][1:]):
        state = step(i, state, None, None)
        np.testing.assert_allclose(state.x, expected, atol=tolerance, err_msg=f"step {i}")
    loop = jax.jit(lambda x: denoise(closed_form, how, x, None))(g["x"][0])
    np.testing.assert_allclose(loop, g["x"][-1], atol=tolerance)


def test_what_the_schedules_of_the_families_are():
    assert sampling_of(steps=4).times.tolist() == [1, 0.75, 0.5, 0.25, 0]
    # shifted once, SD3's would end at 0.00299
    np.testing.assert_allclose(sampling_of(**RUNS["sd3_28"]).times[-3:], [0.11091, 0.00893, 0], atol=1e-5)
    assert sampling_of(steps=1, spacing="sd3", shift=3.0).times.tolist() == [1, 0]
    assert np.log([resolution_shift(tokens) for tokens in (256, 1024, 4096)]) == pytest.approx([0.5, 0.63, 1.15])
    fraction, mu = np.linspace(0.1, 1, 9), 0.8
    np.testing.assert_allclose(shifted(fraction, np.exp(mu)), np.exp(mu) / (np.exp(mu) + 1 / fraction - 1))


def test_euler_is_of_first_order_and_finds_the_data():
    """x of N(MEAN, STD^2) data flows to MEAN + STD x; half the steps, twice the error."""
    ends = MEAN + STD * x_init()

    def worst(steps: int, **how: Any) -> float:
        return float(jnp.abs(sample(exact_flow, steps, sampler="euler", **how) - ends).max())

    assert worst(400) < 0.02
    assert 0.8 < np.log2(worst(50) / worst(100)) < 1.2
    assert worst(200, spacing="sd3", shift=3.0) < 0.1


def test_the_path_and_its_loss():
    flow, noise = Flow(), jax.random.normal(KEY, SHAPE)
    x0, t = 1 + x_init(), jnp.linspace(0, 1, SHAPE[0])
    x_t = flow.q_sample(x0, t, noise)
    np.testing.assert_allclose(x_t[0], x0[0], atol=1e-6)
    np.testing.assert_allclose(x_t[-1], noise[-1], atol=1e-6)
    np.testing.assert_allclose(x_t[5], x0[5] + t[5] * (noise - x0)[5], atol=1e-5)
    assert flow.model_times(t) is t
    off = jnp.arange(SHAPE[0], dtype=jnp.float32)[:, None, None, None]
    losses = flow.training_losses(noise - x0 + off, x0, t, noise)
    assert losses.keys() == {"mse", "loss"}
    np.testing.assert_allclose(losses["loss"], np.arange(SHAPE[0]) ** 2.0, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(losses["mse"], losses["loss"])


def test_the_best_velocity_has_the_least_loss():
    """The exact one leaves the variance of noise - x0 given x_t, and any other more."""
    noise, t = jax.random.normal(KEY, SHAPE), jnp.full(SHAPE[0], 0.4)
    x0 = MEAN + STD * x_init()
    x_t = Flow().q_sample(x0, t, noise)
    best, more, less = (
        float(Flow().training_losses(by * exact_flow(x_t, t, Y), x0, t, noise)["loss"].mean()) for by in (1, 1.1, 0.9)
    )
    assert best == pytest.approx(STD**2 / (0.6**2 * STD**2 + 0.4**2), rel=0.05)
    assert best < min(more, less)


def test_heldout_times_are_spread_evenly_over_the_path():
    held = heldout_set({"image": np.zeros((8, 2, 2, 1))}, Flow())
    assert held.t.dtype == np.float32
    np.testing.assert_allclose(np.sort(held.t), (np.arange(8) + 0.5) / 8)


def test_uniform_steps_are_the_numbers_that_they_always_were():
    for process in (Process(), Process().respaced(10)):
        expected = jax.random.randint(KEY, (50,), 0, len(process))
        for text in ("uniform", "uniform(0, 1)"):
            np.testing.assert_array_equal(process.draw(KEY, 50, Times.parse(text)), expected)
        np.testing.assert_array_equal(process.draw(KEY, 50), expected)


def test_ranges_of_the_noise_fraction():
    times = Times.parse("uniform(0.35, 0.8)")
    steps, fractions = Process().draw(KEY, 5000, times), Flow().draw(KEY, 5000, times)
    assert (int(steps.min()), int(steps.max())) == (350, 799)
    assert 0.35 <= float(fractions.min()) < 0.351
    assert 0.799 < float(fractions.max()) < 0.8
    assert set(np.asarray(Process().draw(KEY, 50, Times.parse("uniform(0.9999, 1)")))) == {999}


@pytest.mark.parametrize(
    ("text", "middle", "quarter"),
    [("logit_normal(0, 1)", 0.5, 0.33747), ("logit_normal(1, 0.5)", 0.73106, 0.65981), ("shifted(3)", 0.75, 0.5)],
)
def test_quantiles_of_the_other_distributions(text, middle, quarter):
    """Within 0.015: of 20,000 numbers a quantile is known to 0.005."""
    times = Times.parse(text)
    assert Times.parse(str(times)) == times
    fractions = np.asarray(Flow().draw(KEY, 20_000, times))
    assert np.quantile(fractions, [0.5, 0.25]) == pytest.approx([middle, quarter], abs=0.015)
    steps = np.asarray(Process().draw(KEY, 20_000, times))
    np.testing.assert_array_equal(steps, np.floor(fractions * np.float32(1000)))


def test_a_shifted_logit_normal_has_another_mean():
    plain, other = (Times("logit_normal", (mean, 0.7)).draw(KEY, 100) for mean in (0.2, 0.2 + np.log(3)))
    np.testing.assert_allclose(shifted(plain, 3.0), other, rtol=1e-5)


@pytest.mark.parametrize(
    "text",
    ["even", "uniform(", "uniform(0.5)", "uniform(0.8, 0.35)", "uniform(0, 1.5)", "uniform(a, 1)", "logit_normal(0, 0)",
     "logit_normal(0, 1, 3)", "logit_normal", "shifted(-1)", "shifted(nan)", ""],
)  # fmt: skip
def test_times_that_are_none_are_refused(text):
    with pytest.raises(BadInput, match=r"^times: got .*, expected 'uniform', 'uniform\(LOW, HIGH\)' in 0\.\.1, "):
        Times.parse(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "sampling steps: 0, expected 1 or more"),
        ({"shift": 0.0}, "shift: 0.0 with 'euler', expected more than 0 for samplers of flows and 1 for others"),
        ({"shift": float("inf")}, "shift: inf"),
        ({"shift": "3"}, "shift: got '3', expected a number"),
        ({"sampler": "ddim", "shift": 3.0}, "shift: 3.0 with 'ddim'"),
        ({"sampler": "ddim", "spacing": "sd3"}, "spacing 'sd3', last 'zero' with 'ddim': expected 'linspace' and 'zero'"),
        ({"sampler": "dpmpp_2m", "spacing": "sd3"}, "with 'dpmpp_2m': expected 'linspace' or 'time_uniform' and"),
        ({"spacing": "time_uniform"}, "with 'euler': expected 'linspace' or 'sd3' or 'tail' and 'zero'"),
        ({"last": "sigma_min"}, "last 'sigma_min' with 'euler'"),
        ({"eta": 0.5}, "eta: 0.5 with 'euler'"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(BadInput, match=message):
        sampling_of(**fields)


def test_settings_in_words():
    how = Sampling(sampler="euler", steps=28, cfg_scale=7.0, cfg_channels=None, spacing="sd3", shift=3.0)
    assert str(how) == "Euler, 28 steps, spaced as in SD3, shift 3, guidance 7 on all channels"
    assert str(sampling_of(steps=4)) == "Euler, 4 steps, no guidance"


def test_misuse_is_refused():
    flow, x, t = Flow(), x_init(), jnp.zeros(SHAPE[0])
    with pytest.raises(BadInput, match="noise: shape"):
        flow.q_sample(x, t, x[:1])
    with pytest.raises(BadInput, match=r"t: shape \(1,\) float32"):
        flow.q_sample(x, t[:1], x)
    with pytest.raises(BadInput, match=r"t: shape \(32,\) int32, expected \(32,\) of a float type"):
        flow.q_sample(x, t.astype(int), x)
    with pytest.raises(BadInput, match=r"model output: shape .* expected a velocity"):
        flow.training_losses(jnp.concatenate([x, x], -1), x, t, x)


@pytest.mark.slow  # diffusers alone takes seconds to import
@pytest.mark.parametrize("shift", [1.0, 1.73, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_any_number_of_steps_is_as_in_diffusers(steps, shift):
    schedulers = pytest.importorskip("diffusers.schedulers")
    theirs = schedulers.FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(steps)
    found = sampling_of(steps=steps, spacing="sd3", shift=shift).times
    np.testing.assert_allclose(found, theirs.sigmas, atol=1e-6)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    np.testing.assert_allclose(sampling_of(steps=steps, shift=shift).times, theirs.sigmas, atol=1e-6)


def test_earlier_times_end_at_the_data_or_the_least_sigma():
    """Of EDM's sigmas a share of sigma / (1 + sigma)."""
    half = jnp.array([0.5, 0.1])
    np.testing.assert_allclose(Flow().earlier(half, jnp.array([0.2, 0.2])), [0.3, 0], rtol=1e-6)
    sigmas = jnp.array([1.0, 80.0, 0.1, 0.001])  # fractions 0.5, 0.988, 0.091, below the least
    found = Flow("edm", "x0").earlier(sigmas, jnp.array([0.25, 0.0, 0.2, 0.2]))
    np.testing.assert_allclose(found, [1 / 3, 80, 0.002, 0.001], rtol=1e-4)
