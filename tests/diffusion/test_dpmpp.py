"""DPM-Solver++ 2M and its SDE form: trajectories of the reference code, order of convergence, marginals, the last step."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import MEAN, SHAPE, STD, Y, compiled, exact, keys_of, sample, x_init

from graftax.diffusion import Process, SamplerState, Sampling, Steps, denoise
from graftax.errors import BadInput

GOLDENS = Path(__file__).parents[1] / "goldens"
RUNS: dict[str, dict[str, Any]] = {
    "pixart_dpmpp_2m_20": {},
    "pixart_dpmpp_2m_8": {"steps": 8},
    "pixart_sde_dpmpp_20": {"sampler": "sde_dpmpp_2m"},
    "dpmpp_2m_20_sigma_min": {"last": "sigma_min"},
    "pixart_original_dpm_solver_20": {"spacing": "time_uniform", "last": "sigma_min"},
}


@functools.cache
def golden(run: str) -> dict[str, jax.Array]:
    """Trajectory x, times t and what else belongs to a run; images are turned to channels-last."""
    with np.load(GOLDENS / "dpmpp.npz") as file:
        found = {name.split("/")[1]: file[name] for name in file.files if name.startswith(f"{run}/")}
    return {name: jnp.asarray(np.moveaxis(a, 2, -1) if a.ndim > 1 else a) for name, a in found.items()}


def sampling_of(**fields) -> Sampling:
    return Sampling(**{"sampler": "dpmpp_2m", "steps": 20, "cfg_scale": 1.0, **fields})


def closed_form(x, t, cond):
    """The denoiser of the reference trajectories; it has no variance channels."""
    return 0.3 * x + 0.1 * jnp.sin(t.astype(jnp.float32) / 100)[:, None, None, None]


def walk(model_fn, how: Sampling, x, cond=None, noise=None) -> np.ndarray:
    """(steps + 1, b, h, w, c): noise, and what every step has left."""
    step = jax.jit(Steps(model_fn, how))
    state, seen = SamplerState.begin(x), [x]
    for i in range(how.steps):
        state = step(i, state, cond, None if noise is None else noise[i])
        seen.append(state.x)
    return np.stack(seen)


@pytest.mark.parametrize("run", RUNS)
def test_trajectories_of_the_reference(run):
    """diffusers' scheduler as PixArt publishes it, and PixArt's own solver; relative to the scale, about 70."""
    g, how = golden(run), sampling_of(**RUNS[run])
    np.testing.assert_allclose(how.timesteps, g["t"], rtol=1e-6)
    found = walk(closed_form, how, g["x"][0], noise=g.get("noise"))
    np.testing.assert_allclose(found, g["x"], atol=1e-5 * float(jnp.abs(g["x"]).max()))
    loop = jax.jit(lambda x, noise: denoise(closed_form, how, x, None, step_noise=noise))(g["x"][0], g.get("noise"))
    np.testing.assert_allclose(loop, g["x"][-1], atol=1e-5 * float(jnp.abs(g["x"]).max()))


def test_trajectory_of_the_pipeline_under_its_guidance():
    """PixArt's pipeline of six steps: its guided predictions in, its latents out."""
    g = golden("pipeline")

    def replayed(x, t, cond):
        return g["guided"][jnp.argmax(g["t"] == t[0])]

    found = walk(replayed, sampling_of(steps=6), g["x"][0])
    for i, (x, expected) in enumerate(zip(found, g["x"], strict=True)):
        np.testing.assert_allclose(x, expected, atol=1e-5 * float(jnp.abs(expected).max()), err_msg=f"step {i}")


def flow(x, start: int, end: int):
    """Where the probability flow takes x of N(MEAN, STD^2) data noised to step `start`, at step `end`: exactly."""
    a, b = (Process().tables.alpha_bar[i] for i in (start, end))
    spread = np.sqrt((b * STD**2 + 1 - b) / (a * STD**2 + 1 - a))
    return np.sqrt(b) * MEAN + spread * (x - np.sqrt(a) * MEAN)


def test_it_is_of_second_order():
    """Halved steps make a quarter of the error, measured at step 500, where grids of 10, 20 and 40 steps meet; DDIM, of
    first order, is at half of it."""

    def error(sampler: str, steps: int) -> float:
        how = sampling_of(sampler=sampler, steps=steps)
        half = int(np.argmin(np.abs(how.timesteps - 500)))
        step, state = jax.jit(Steps(exact(1000), how)), SamplerState.begin(x_init())
        for i in range(half):
            state = step(i, state, Y, None)
        return float(jnp.abs(state.x - flow(x_init(), 999, int(how.timesteps[half]))).max())

    ten, twenty, forty = (error("dpmpp_2m", steps) for steps in (10, 20, 40))
    assert 1.7 < np.log2(ten / twenty) < 2.1
    assert 1.8 < np.log2(twenty / forty) < 2.1
    assert np.log2(error("ddim", 20) / error("ddim", 40)) < 1.4
    assert forty < 1e-3


def test_it_needs_fewer_steps_than_ddim():
    def worst(sampler: str, steps: int) -> float:
        return float(jnp.abs(sample(exact(1000), steps, sampler=sampler) - (MEAN + STD * x_init())).max())

    assert worst("dpmpp_2m", 40) < 0.03 < 0.1 < worst("ddim", 40)


def test_the_sde_form_draws_from_the_data_distribution():
    """Variance within 4 %: 2 % of discretisation in 100 steps, 5 standard errors of chance 1.1 % each."""
    out = sample(exact(1000), 100, keys=keys_of(0), sampler="sde_dpmpp_2m")
    assert abs(float(out.mean()) - MEAN) < 0.01
    assert abs(float(out.var()) / STD**2 - 1) < 0.04
    other = sample(exact(1000), 100, keys=keys_of(1), sampler="sde_dpmpp_2m")
    assert float(jnp.abs(other - out).max()) > 0.1


@pytest.mark.slow
def test_an_image_does_not_depend_on_its_batch():
    keys, how = keys_of(3), {"sampler": "sde_dpmpp_2m"}
    whole = sample(exact(1000), 5, keys=keys, **how)
    part = sample(exact(1000), 5, x_init()[5:9], Y[5:9], keys[5:9], **how)
    np.testing.assert_allclose(whole[5:9], part, rtol=0, atol=1e-4)  # of values to about 10 on the way


def second_order(how: Sampling, last: bool, noise=None) -> np.ndarray:
    """The result of `how` on `closed_form` data in float64, as the paper's algorithm reads; `last`: the last step too is of
    second order."""
    alpha_bar = Process().alpha_bar_at(how.times)
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    lam = np.log(alpha) - np.log(sigma)
    x, before = np.asarray(golden("pixart_dpmpp_2m_8")["x"][0], np.float64), None
    for i, t in enumerate(how.timesteps):
        m = (x - sigma[i] * (0.3 * x + 0.1 * np.sin(t / 100))) / alpha[i]
        h, d = lam[i + 1] - lam[i], m
        if before is not None and (i < how.steps - 1 or last):
            d = m + (m - before) / (2 * (lam[i] - lam[i - 1]) / h)
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * np.expm1(-h) * d
        before = m
    return x


@pytest.mark.parametrize("steps", [14, 15])
def test_few_steps_end_in_one_of_first_order(steps):
    how = sampling_of(steps=steps, last="sigma_min")
    out = denoise(closed_form, how, golden("pixart_dpmpp_2m_8")["x"][0], None)
    expected, other = (second_order(how, last=last) for last in (steps >= 15, steps < 15))
    np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(other - expected).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.slow  # diffusers alone takes seconds to import
@pytest.mark.parametrize("last", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [1, 5, 14, 15, 33])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "sde_dpmpp_2m"])
def test_any_number_of_steps_is_as_in_diffusers(sampler, steps, last):
    torch, schedulers = pytest.importorskip("torch"), pytest.importorskip("diffusers.schedulers")
    kind = "dpmsolver++" if sampler == "dpmpp_2m" else "sde-dpmsolver++"
    theirs = schedulers.DPMSolverMultistepScheduler(algorithm_type=kind, final_sigmas_type=last, beta_schedule="linear")
    theirs.set_timesteps(steps)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((steps, 2, 3, 3, 4), np.float32)
    x = start = rng.standard_normal((2, 3, 3, 4), np.float32)
    for t, n in zip(theirs.timesteps, noise, strict=True):
        eps = 0.3 * torch.tensor(x) + 0.1 * float(np.sin(float(t) / 100))
        x = theirs.step(eps, t, torch.tensor(x), variance_noise=torch.tensor(n)).prev_sample.numpy()
    how = sampling_of(sampler=sampler, steps=steps, last=last)
    np.testing.assert_array_equal(how.timesteps, theirs.timesteps)
    out = denoise(closed_form, how, jnp.asarray(start), None, step_noise=jnp.asarray(noise))
    np.testing.assert_allclose(out, x, atol=2e-5 * max(1, np.abs(x).max()))


def test_times_and_where_they_end():
    assert sampling_of(steps=4).times.tolist() == [999, 749, 500, 250, -1]  # 499.5 rounds to even
    assert sampling_of(steps=4, last="sigma_min").times.tolist() == [999, 749, 500, 250, 0]
    exactly = sampling_of(steps=4, spacing="time_uniform")
    assert exactly.times.tolist() == [999, 749.25, 499.5, 249.75, -1]
    assert exactly.timesteps.dtype == np.float32
    assert Sampling(sampler="ddim", steps=4).times.tolist() == [999, 666, 333, 0, -1]


def test_the_process_between_its_steps():
    process = Process()
    np.testing.assert_allclose(process.alpha_bar_at(np.arange(1000.0)), process.tables.alpha_bar, rtol=1e-12)
    assert process.alpha_bar_at(np.array([-1.0])) == 1
    between = process.alpha_bar_at(np.array([41.25]))
    np.testing.assert_allclose(between, process.tables.alpha_bar[41] ** 0.75 * process.tables.alpha_bar[42] ** 0.25)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "sde_dpmpp_2m"])
def test_models_without_variance_channels_are_drawn_alike(sampler):
    with_variance = exact(1000)

    def model(x, t, y):
        return with_variance(x, t, y)[..., : SHAPE[-1]]

    how = {"sampler": sampler, "keys": keys_of(0)}
    np.testing.assert_allclose(sample(model, 6, **how), sample(with_variance, 6, **how), atol=1e-5)


def test_ddpm_needs_variance_channels():
    with pytest.raises(BadInput, match="sampler 'ddpm': the model has no variance channels, expected another sampler"):
        compiled(closed_form, Sampling(sampler="ddpm", steps=4), False)(x_init(), Y, keys_of(0), None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, r"sampling steps: 0, expected 1\.\.999"),
        ({"steps": 1000}, r"sampling steps: 1000, expected 1\.\.999"),
        ({"eta": 0.5}, "eta: 0.5 with 'dpmpp_2m', expected 0..1 for 'ddim' and 0 for others"),
        ({"spacing": "karras"}, "spacing: got 'karras', expected one of"),
        ({"last": "nought"}, "last: got 'nought', expected one of"),
        ({"sampler": "dpmpp_2"}, "did you mean 'dpmpp_2m'"),
        ({"sampler": "ddim", "last": "sigma_min"}, "last 'sigma_min' with 'ddim': expected 'linspace' and 'zero'"),
        ({"sampler": "ddpm", "spacing": "time_uniform"}, "spacing 'time_uniform', last 'zero' with 'ddpm'"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(BadInput, match=message):
        sampling_of(**fields)


def test_the_sde_form_needs_noise():
    with pytest.raises(BadInput, match="noise of SDE-DPM-Solver"):
        denoise(closed_form, sampling_of(sampler="sde_dpmpp_2m"), x_init(), None)


def test_settings_in_words():
    assert str(sampling_of()) == "DPM-Solver++ 2M, 20 steps, no guidance"
    own = sampling_of(spacing="time_uniform", last="sigma_min", cfg_scale=4.5, cfg_channels=0)
    assert str(own) == "DPM-Solver++ 2M, 20 steps, not rounded, to sigma_min, guidance 4.5 on all channels"
