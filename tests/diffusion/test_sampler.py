"""Both samplers on Gaussian data, whose best denoiser is known in closed form, and against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.diffusion import Process, sample
from graftax.errors import BadInput

MEAN, STD = 0.7, 0.4  # of the data
SHAPE = (32, 16, 16, 2)  # 16,384 independent numbers
Y = jnp.zeros(32, jnp.int32)


def gaussian_model(process: Process, mean: float = MEAN, std: float = STD):
    """The exact denoiser of N(mean, std^2) data: best noise estimate, true variance of the reverse step."""
    c = process.tables
    total = c.alpha_bar * std**2 + 1 - c.alpha_bar  # variance of x_t
    x0_weight = (1 - c.alpha_bar / c.alpha_bar_prev) * np.sqrt(c.alpha_bar_prev) / (1 - c.alpha_bar)
    reverse = c.posterior_variance + x0_weight**2 * std**2 * (1 - c.alpha_bar) / total
    v = 2 * (np.log(reverse) - c.log_variance_low) / (c.log_variance_high - c.log_variance_low) - 1
    v[0] = 0.0  # no noise is added there
    root, gain = np.sqrt(c.alpha_bar), np.sqrt(1 - c.alpha_bar) / total  # E[noise | x] = gain (x - root mean)
    tables = [jnp.asarray(table, jnp.float32) for table in (root, gain, v)]
    step_of = jnp.zeros(process.steps, jnp.int32).at[process.timestep_map].set(jnp.arange(len(process)))

    def model(x, t, y):
        root, gain, v = (table[step_of[t]][:, None, None, None] for table in tables)  # t is an original index
        return jnp.concatenate([gain * (x - root * mean), jnp.broadcast_to(v, x.shape)], axis=-1)

    return model


@functools.cache
def x_init() -> jax.Array:
    return jax.random.normal(jax.random.key(1), SHAPE)


@pytest.mark.parametrize("steps", [20, 250])
def test_ddpm_draws_from_the_data_distribution(steps):
    process = Process().respaced(steps)
    out = sample(gaussian_model(process), process, x_init(), Y, jax.random.key(0))
    # Each step is exact for Gaussian data, so what remains is chance: 5 standard errors. The last step
    # returns E[x0 | x1] and loses a share (1 - alpha_bar_0) / STD^2 = 6e-4 of the variance, far below that.
    assert abs(float(out.mean()) - MEAN) < 5 * STD / np.sqrt(out.size)
    assert abs(float(out.std()) - STD) < 5 * STD / np.sqrt(2 * out.size)


def test_ddim_follows_the_flow_of_the_data_distribution():
    # Between Gaussians the probability flow is linear: x_init lands on MEAN + STD * x_init as steps shrink.
    def worst(steps: int) -> float:
        process = Process().respaced(steps)
        out = sample(gaussian_model(process), process, x_init(), Y, sampler="ddim")
        return float(jnp.abs(out - (MEAN + STD * x_init())).max())

    coarse, fine = worst(50), worst(1000)
    assert fine < 0.02
    assert fine < coarse / 5


def test_ddim_at_full_eta_is_ddpm_with_the_lowest_variance():
    process = Process().respaced(20)
    exact = gaussian_model(process)

    def model(x, t, y):
        eps = exact(x, t, y)[..., :2]
        return jnp.concatenate([eps, -jnp.ones_like(eps)], axis=-1)

    key = jax.random.key(2)
    ddpm = sample(model, process, x_init(), Y, key)
    np.testing.assert_allclose(sample(model, process, x_init(), Y, key, "ddim", eta=1.0), ddpm, atol=1e-5)


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
    out = sample(model, process, x_init(), Y, sampler="ddim", eta=eta, step_noise=noise, clip=clip)
    np.testing.assert_allclose(out, x, atol=2e-5)


def test_noise_comes_from_the_key_folded_with_the_step():
    process, key = Process().respaced(10), jax.random.key(4)
    model = gaussian_model(process)
    given = jnp.stack([jax.random.normal(jax.random.fold_in(key, i), SHAPE) for i in range(10)])
    drawn = sample(model, process, x_init(), Y, key)
    np.testing.assert_allclose(sample(model, process, x_init(), Y, step_noise=given), drawn, atol=1e-6)
    assert jnp.abs(sample(model, process, x_init(), Y, jax.random.key(5)) - drawn).max() > 0.1


def test_deterministic_ddim_needs_and_uses_no_noise():
    process = Process().respaced(5)
    model = gaussian_model(process)
    out = sample(model, process, x_init(), Y, sampler="ddim")
    np.testing.assert_array_equal(sample(model, process, x_init(), Y, jax.random.key(6), "ddim"), out)


def test_last_step_adds_no_noise():
    process = Process().respaced(6)
    model = gaussian_model(process)
    noise = jax.random.normal(jax.random.key(7), (6, *SHAPE))
    out = sample(model, process, x_init(), Y, step_noise=noise)
    changed = sample(model, process, x_init(), Y, step_noise=noise.at[-1].add(5.0))
    np.testing.assert_array_equal(out, changed)
    assert jnp.abs(sample(model, process, x_init(), Y, step_noise=noise.at[0].add(5.0)) - out).max() > 1e-3


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_clip_holds_the_prediction_in_range(sampler):
    process = Process().respaced(30)
    model = gaussian_model(process, mean=3.0)
    key = jax.random.key(8)
    out = sample(model, process, x_init(), Y, key, sampler, clip=True)  # all of the data lies above 1
    assert out.max() <= 1
    assert out.mean() > 0.9
    assert sample(model, process, x_init(), Y, key, sampler).mean() > 2.9


def test_model_sees_original_timesteps_noisiest_first():
    process, seen = Process().respaced(4), []

    def model(x, t, y):
        jax.debug.callback(lambda t, y: seen.append((t.tolist(), y.tolist())), t, y, ordered=True)
        return jnp.concatenate([x, x], axis=-1)

    sample(model, process, x_init()[:2], jnp.array([3, 8]), sampler="ddim").block_until_ready()
    jax.effects_barrier()
    assert seen == [([t, t], [3, 8]) for t in (999, 666, 333, 0)]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_whole_sampler_is_one_compiled_loop(sampler):
    traces = []

    def lowered_for(steps: int):
        process = Process().respaced(steps)
        exact = gaussian_model(process)

        def model(x, t, y):
            traces.append(steps)
            return exact(x, t, y)

        return jax.jit(lambda x, y, key: sample(model, process, x, y, key, sampler))

    run, key = lowered_for(250), jax.random.key(0)
    text = run.lower(x_init(), Y, key).compile().as_text()
    assert text is not None
    assert "while(" in text
    for escape in ("callback", "infeed", "send("):  # a step that goes back to the host
        assert escape not in text
    short = lowered_for(10).lower(x_init(), Y, key).compile().as_text()
    assert short is not None
    assert len(text.splitlines()) < 1.1 * len(short.splitlines())  # not unrolled
    first = len(traces)
    assert first <= 4  # a scan may trace its body twice
    run(x_init(), Y, key)
    run(x_init() + 1, Y + 1, jax.random.key(9))
    assert len(traces) == first  # nothing is traced again


def test_bfloat16_input_is_sampled_in_float32():
    process = Process().respaced(4)
    model = gaussian_model(process)
    out = sample(model, process, x_init().astype(jnp.bfloat16), Y, sampler="ddim")
    exact = sample(model, process, x_init().astype(jnp.bfloat16).astype(jnp.float32), Y, sampler="ddim")
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, exact)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"sampler": "euler"}, "sampler: 'euler'"),
        ({"eta": 0.5}, "eta: 0.5 with 'ddpm'"),
        ({"sampler": "ddim", "eta": 1.5}, "eta: 1.5"),
        ({"key": None}, "neither key nor step_noise"),
        ({"step_noise": jnp.zeros((3, *SHAPE))}, "step_noise: shape"),
        ({"y": Y[:1]}, "x_init, y"),
        ({"model_fn": lambda x, t, y: x}, "model output"),
    ],
)
def test_bad_arguments_are_refused(arguments, word):
    process = Process().respaced(4)
    key = jax.random.key(0)
    good = dict(model_fn=gaussian_model(process), process=process, x_init=x_init(), y=Y, key=key)
    with pytest.raises(BadInput, match=word):
        sample(**{**good, **arguments})


def test_with_a_key_per_image_an_image_does_not_depend_on_its_batch():
    process = Process().respaced(5)
    keys = jax.random.split(jax.random.key(3), 32)
    whole = sample(gaussian_model(process), process, x_init(), Y, keys)
    part = sample(gaussian_model(process), process, x_init()[5:9], Y[5:9], keys[5:9])
    np.testing.assert_allclose(whole[5:9], part, rtol=0, atol=1e-5)  # of values about 1: compiled for other shapes
    assert float(jnp.abs(whole[0] - whole[1]).max()) > 0.1


def test_keys_must_be_one_or_one_per_image():
    process = Process().respaced(5)
    with pytest.raises(BadInput, match="key: shape"):
        sample(gaussian_model(process), process, x_init(), Y, jax.random.split(jax.random.key(3), 7))
