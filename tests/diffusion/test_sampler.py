"""DDPM and DDIM on Gaussian data, whose best denoiser is known in closed form, and against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import MEAN, SHAPE, STD, Y, exact, exact_edm, exact_flow, gaussian_model, keys_of, sample, x_init

from graftax.diffusion import SAMPLERS, Process, Sampling, Steps, unit_noise
from graftax.errors import BadInput


@pytest.mark.parametrize("steps", [20, pytest.param(250, marks=pytest.mark.slow)])
def test_ddpm_draws_from_the_data_distribution(steps):
    out = sample(exact(steps), steps, keys=keys_of(0))
    # Each step is exact for Gaussian data, so what remains is chance: 5 standard errors. The last step
    # returns E[x0 | x1] and loses a share (1 - alpha_bar_0) / STD^2 = 6e-4 of the variance, far below that.
    assert abs(float(out.mean()) - MEAN) < 5 * STD / np.sqrt(out.size)
    assert abs(float(out.std()) - STD) < 5 * STD / np.sqrt(2 * out.size)


def test_ddim_follows_the_flow_of_the_data_distribution():
    # Between Gaussians the probability flow is linear: x_init lands on MEAN + STD * x_init as steps shrink.
    def worst(steps: int) -> float:
        out = sample(exact(steps), steps, sampler="ddim")
        return float(jnp.abs(out - (MEAN + STD * x_init())).max())

    coarse, fine = worst(50), worst(1000)
    assert fine < 0.02
    assert fine < coarse / 5


def test_ddim_at_full_eta_is_ddpm_with_the_lowest_variance():
    best = exact(20)

    def model(x, t, y):
        eps = best(x, t, y)[..., :2]
        return jnp.concatenate([eps, -jnp.ones_like(eps)], axis=-1)

    ddpm = sample(model, 20, keys=keys_of(2))
    np.testing.assert_allclose(sample(model, 20, keys=keys_of(2), sampler="ddim", eta=1.0), ddpm, atol=1e-5)


@pytest.mark.parametrize("clip", [False, True])
def test_ddim_equals_its_published_form(clip):
    """Eq. 12 of the DDIM paper as printed, one step at a time, in float64."""
    process, eta = Process().respaced(8), 0.6
    noise = jax.random.normal(jax.random.key(3), (8, *SHAPE))
    model, c, x = gaussian_model(process), process.tables, np.asarray(x_init(), np.float64)
    for i, step in enumerate(reversed(range(8))):
        a, prev = c.alpha_bar[step], c.alpha_bar_prev[step]
        t = jnp.full(SHAPE[0], int(process.timestep_map[step]))
        eps = np.asarray(model(jnp.asarray(x, jnp.float32), t, Y))[..., :2]
        sigma = eta * np.sqrt((1 - prev) / (1 - a)) * np.sqrt(1 - a / prev)
        x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        if clip:  # then the noise that goes with the clipped x0
            x0 = np.clip(x0, -1, 1)
            eps = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
        x = np.sqrt(prev) * x0 + np.sqrt(1 - prev - sigma**2) * eps + sigma * np.asarray(noise[i])
    out = sample(model, 8, sampler="ddim", eta=eta, step_noise=noise, clip=clip)
    np.testing.assert_allclose(out, x, atol=2e-5)


@pytest.mark.slow
def test_noise_comes_from_the_keys_folded_with_the_step():
    model, keys = exact(10), keys_of(4)
    each = [jax.random.normal(jax.random.fold_in(keys[3], i), SHAPE[1:]) for i in range(10)]
    given = jnp.stack([unit_noise(keys, i, SHAPE[1:]) for i in range(10)])
    np.testing.assert_allclose(given[:, 3], np.stack(each), atol=1e-6)
    drawn = sample(model, 10, keys=keys)
    np.testing.assert_allclose(sample(model, 10, step_noise=given), drawn, atol=1e-6)
    assert jnp.abs(sample(model, 10, keys=keys_of(5)) - drawn).max() > 0.1


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "dopri5"])
def test_one_step_after_the_other_is_the_loop(sampler):
    how = Sampling(sampler=sampler, steps=6)
    model = exact_flow if how.flow else exact(6) if sampler in ("ddpm", "ddim") else exact(1000)
    steps = Steps(exact_edm if sampler == "edm_heun" else model, how)
    assert how.noisy == (sampler in ("ddpm", "sde_dpmpp_2m", "euler_maruyama", "sde_heun"))
    noise = jax.random.normal(jax.random.key(7), (6, *SHAPE))
    step, state = jax.jit(steps), steps.start(x_init())
    for call, number in enumerate(steps.numbers):
        state = step(call, state, Y, noise[number] if how.noisy else None)
    twice = {"heun": 12, "midpoint": 12, "sde_heun": 11, "edm_heun": 11}
    assert len(steps.numbers) == twice.get(sampler, 6)
    np.testing.assert_allclose(steps.scan(x_init(), Y, None, noise), state.x, atol=1e-5)


def test_deterministic_ddim_needs_and_uses_no_noise():
    out = sample(exact(5), 5, sampler="ddim")
    np.testing.assert_array_equal(sample(exact(5), 5, keys=keys_of(6), sampler="ddim"), out)


def test_last_step_adds_no_noise():
    model, noise = exact(6), jax.random.normal(jax.random.key(7), (6, *SHAPE))
    out = sample(model, 6, step_noise=noise)
    np.testing.assert_array_equal(out, sample(model, 6, step_noise=noise.at[-1].add(5.0)))
    assert jnp.abs(sample(model, 6, step_noise=noise.at[0].add(5.0)) - out).max() > 1e-3


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_clip_holds_the_prediction_in_range(sampler):
    model = exact(30, mean=3.0)
    out = sample(model, 30, keys=keys_of(8), sampler=sampler, clip=True)  # all of the data lies above 1
    assert out.max() <= 1
    assert out.mean() > 0.9
    assert sample(model, 30, keys=keys_of(8), sampler=sampler).mean() > 2.9


def test_model_sees_original_timesteps_noisiest_first():
    seen = []

    def model(x, t, y):
        jax.debug.callback(lambda t, y: seen.append((t.tolist(), y.tolist())), t, y, ordered=True)
        return jnp.concatenate([x, x], axis=-1)

    sample(model, 4, x_init()[:2], jnp.array([3, 8]), sampler="ddim").block_until_ready()
    jax.effects_barrier()
    assert seen == [([t, t], [3, 8]) for t in (999, 666, 333, 0)]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_whole_sampler_is_one_compiled_loop(sampler):
    traces = []

    def lowered_for(steps: int):
        best = exact(steps)

        def model(x, t, y):
            traces.append(steps)
            return best(x, t, y)

        return jax.jit(lambda x, y, keys: sample(model, steps, x, y, keys, sampler=sampler))

    run, keys = lowered_for(250), keys_of(0)
    text = run.lower(x_init(), Y, keys).compile().as_text()
    assert text is not None
    assert "while(" in text
    for escape in ("callback", "infeed", "send("):  # a step that goes back to the host
        assert escape not in text
    short = lowered_for(10).lower(x_init(), Y, keys).compile().as_text()
    assert short is not None
    assert len(text.splitlines()) < 1.1 * len(short.splitlines())  # not unrolled
    run(x_init(), Y, keys)
    run(x_init() + 1, Y + 1, keys_of(9))
    assert traces == [250, 10]  # once each: tracing is most of a start whose programs are kept


@pytest.mark.slow
def test_bfloat16_input_is_sampled_in_float32():
    half = x_init().astype(jnp.bfloat16)
    out = sample(exact(4), 4, half, sampler="ddim")
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, sample(exact(4), 4, half.astype(jnp.float32), sampler="ddim"))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"sampler": "unipc"}, "sampler: got 'unipc', expected one of"),
        ({"eta": 0.5}, "eta: 0.5 with 'ddpm'"),
        ({"sampler": "ddim", "eta": 1.5}, "eta: 1.5"),
        ({"keys": None}, "neither keys nor step_noise"),
        ({"keys": None, "sampler": "ddim", "eta": 0.1}, "neither keys nor step_noise"),
        ({"keys": keys_of(3)[:7]}, r"keys: shape \(7,\), expected one for each of 32 images"),
        ({"keys": jax.random.key(3)}, r"keys: shape \(\)"),
        ({"step_noise": jnp.zeros((3, *SHAPE))}, "step_noise: shape"),
        ({"x": jnp.zeros(SHAPE[1:])}, "x_init: shape"),
        ({"steps": 1}, "sampling steps: 1"),
        ({"model": lambda x, t, y: x[..., :1]}, "model output"),
    ],
)
def test_bad_arguments_are_refused(arguments, word):
    good = {"model": exact(4), "steps": 4, "keys": keys_of(0)}
    with pytest.raises(BadInput, match=word):
        sample(**{**good, **arguments})


@pytest.mark.slow
def test_an_image_does_not_depend_on_its_batch():
    keys = keys_of(3)
    whole = sample(exact(5), 5, keys=keys)
    part = sample(exact(5), 5, x_init()[5:9], Y[5:9], keys[5:9])
    np.testing.assert_allclose(whole[5:9], part, rtol=0, atol=1e-5)  # of values about 1: compiled for other shapes
    assert float(jnp.abs(whole[0] - whole[1]).max()) > 0.1
