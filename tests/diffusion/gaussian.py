"""Gaussian data, whose best denoiser is known in closed form, and what samplers make of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from graftax.diffusion import Process, Sampling, denoise, image_keys

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


def keys_of(seed: int) -> jax.Array:
    return image_keys(jax.random.key(seed), 0, SHAPE[0])


def sample(model, steps, x=None, y=Y, keys=None, step_noise=None, clip=False, sampler="ddpm", **how):
    """`denoise` without guidance, from `x_init()` if not told otherwise."""
    run = compiled(model, Sampling(sampler=sampler, steps=steps, cfg_scale=1.0, **how), clip)
    return run(x_init() if x is None else x, y, keys, step_noise)


@functools.cache
def compiled(model, sampling, clip):
    """One compilation for all tests that draw in the same way."""
    return jax.jit(lambda x, y, keys, noise: denoise(model, sampling, x, y, keys, noise, clip=clip))


@functools.cache
def exact(steps: int, **data):
    return gaussian_model(Process().respaced(steps), **data)


def exact_edm(x, sigma, y):
    """The exact x0 of N(MEAN, STD^2) data at x0 + sigma noise, sigma (b,)."""
    variance = sigma[:, None, None, None] ** 2
    return (STD**2 * x + variance * MEAN) / (STD**2 + variance)


def exact_flow(x, t, y):
    """The exact velocity E[noise - x0 | x_t] of N(MEAN, STD^2) data at noise fractions t (b,)."""
    t = t[:, None, None, None]
    gain = (t - (1 - t) * STD**2) / ((1 - t) ** 2 * STD**2 + t**2)
    return -MEAN + gain * (x - (1 - t) * MEAN)
