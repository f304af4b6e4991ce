"""What tells one sampler from another: the scalars of its steps, computed in float64 on the times of `Sampling.times`.

There x_t = alpha x0 + sigma noise, with alpha^2 = alpha_bar and sigma^2 = 1 - alpha_bar; on the paths of flows
alpha and sigma are the path's. Every sampler here is one linear rule (`Step`) with weights of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from graftax.diffusion.process import Process
from graftax.diffusion.sampling import Sampling
from graftax.diffusion.walk import walk
from graftax.diffusion.way import Way
from graftax.paths import level

FEW_STEPS = 15
"""Below so many steps the last one of a multistep solver is of first order, which is stabler (Lu et al. 2022)."""


class Step(NamedTuple):
    """Scalars of one call of the model: it looks at x + lift * noise, the estimate is e = x_scale * x - out_scale * out, x0
    or the slope towards it, and the next x is
    x0_weight * e + x_weight * x at the step's start + before_weight * e of the call before + std * noise.

    As fields of a schedule they are arrays (calls,), noisiest first. What a sampler does not use is None.
    """

    timestep: jax.Array  # for the model
    x_scale: jax.Array
    out_scale: jax.Array
    x0_weight: jax.Array
    x_weight: jax.Array
    before_weight: jax.Array | None = None
    std: jax.Array | None = None  # DDPM: 1, to be scaled by the learned deviation; 0 at the last step
    log_variance_low: jax.Array | None = None
    log_variance_high: jax.Array | None = None
    lift: jax.Array | None = None
    number: jax.Array | None = None  # of the step, where some call the model twice
    ends: jax.Array | None = None  # whether the step does, likewise
    guidance: jax.Array | None = None  # its scale, where that varies


def schedule(sampling: Sampling, way: Way) -> Step:
    """The calls of `sampling`: float32 fields (calls,); timesteps as in `Sampling.timesteps`, one call a step but where a
    method looks twice. `way`: along which flows are walked."""
    if sampling.flow or sampling.sampler == "edm_heun":
        found = list(walk(sampling, way))
        rows = {name: np.array([row[name] for row in found]) for name in found[0]}
        numbers, ends, times = rows.pop("number").astype(np.int32), rows.pop("ends"), rows.pop("timestep").astype(np.float32)
        known = {"number": jnp.asarray(numbers), "ends": jnp.asarray(ends)} if not ends.all() else {}
    else:
        rows, known = (_multistep if sampling.multistep else _ancestral)(sampling), {}
        numbers, times = np.arange(sampling.steps), sampling.timesteps
    if sampling.varies:
        rows["guidance"] = guidance_scales(sampling, way)[numbers]
    return Step(jnp.asarray(times), **{name: jnp.asarray(row, jnp.float32) for name, row in rows.items()}, **known)


def step_numbers(sampling: Sampling, way: Way) -> np.ndarray:
    """(calls,) int: the step of every call of the model."""
    if sampling.flow or sampling.sampler == "edm_heun":
        return np.array([row["number"] for row in walk(sampling, way)])
    return np.arange(sampling.steps)


def guidance_scales(sampling: Sampling, way: Way) -> np.ndarray:
    """(steps,) the scale of guidance in every step, 1 where there is none."""
    progress = np.arange(sampling.steps) / sampling.steps
    rise = (1 - np.cos(np.pi * progress**sampling.cfg_power)) / 2 if sampling.cfg_power else 1.0
    scales = 1 + (sampling.cfg_scale - 1) * rise * np.ones(sampling.steps)
    if sampling.interval is None:
        return scales
    return np.where(inside(sampling.interval, noise_ratios(sampling, way)), scales, 1.0)


def noise_ratios(sampling: Sampling, way: Way) -> np.ndarray:
    """(steps,) sigma / alpha at which the steps begin."""
    times = sampling.times_between(way.most, way.least)[:-1]
    if sampling.flow or sampling.sampler == "edm_heun":
        at = level(way.path, times)
        with np.errstate(divide="ignore"):
            return at.sigma / at.alpha
    alpha_bar = Process().alpha_bar_at(times)
    return np.sqrt((1 - alpha_bar) / alpha_bar)


def inside(interval: tuple[float, float], ratio: np.ndarray) -> np.ndarray:
    """Whether sigma / alpha is in the interval; what is nearer to an end than float32 tells counts as on it."""
    low, high = (end * (1 + 1e-6) for end in interval)
    return (low < ratio) & (ratio <= high)


def _ancestral(sampling: Sampling) -> dict[str, np.ndarray]:
    """DDPM and DDIM.

    DDIM's "direction to x_t" is written through x0 and x_t instead of eps. So the posterior mean of DDPM (Eq. 7) is the
    case eta = 1, and a clipped x0 needs no second eps.
    """
    c, learned = Process().respaced(sampling.steps).tables, sampling.sampler == "ddpm"
    sigma = (1.0 if learned else sampling.eta) * np.sqrt(c.posterior_variance)
    x_weight = np.sqrt((1 - c.alpha_bar_prev - sigma**2) / (1 - c.alpha_bar))
    rows = {
        "x_scale": 1 / np.sqrt(c.alpha_bar),
        "out_scale": np.sqrt(1 / c.alpha_bar - 1),
        "x0_weight": np.sqrt(c.alpha_bar_prev) - x_weight * np.sqrt(c.alpha_bar),
        "x_weight": x_weight,
    }
    if learned:
        rows |= {"log_variance_low": c.log_variance_low, "log_variance_high": c.log_variance_high}
    if learned or sampling.eta:
        rows["std"] = (sigma > 0).astype(float) if learned else sigma
    return {name: row[::-1] for name, row in rows.items()}


def _multistep(sampling: Sampling) -> dict[str, np.ndarray]:
    """DPM-Solver++ 2M in its midpoint form, and its SDE form (Lu et al. 2022, arXiv 2211.01095).

    With lambda = log(alpha / sigma), h its growth in a step and m the x0 that the model predicts, x becomes
    (sigma_t / sigma_s) x + alpha_t (1 - e^-h) (m + h / (2 h_before) (m - m_before)); in the SDE form the first factor is
    e^-h times that, 1 - e^-h is 1 - e^-2h, and noise of deviation sigma_t sqrt(1 - e^-2h) is added. The first step is of
    first order (m alone), and the last where it ends at the data, where there are few steps, and in PixArt's own solver.
    """
    alpha_bar = Process().alpha_bar_at(sampling.times)
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)  # (steps + 1,)
    shrink = sigma[1:] * alpha[:-1] / (alpha[1:] * sigma[:-1])  # e^-h, 0 where the step ends at the data
    lowered = sampling.last == "zero" or sampling.spacing == "time_uniform" or sampling.steps < FEW_STEPS
    h = -np.log(shrink[:-1] if lowered else shrink)
    slope = np.zeros(sampling.steps)
    slope[1 : len(h)] = h[1:] / (2 * h[:-1])
    stochastic = sampling.sampler == "sde_dpmpp_2m"
    kept = shrink**2 if stochastic else shrink
    gain = alpha[1:] * (1 - kept)
    rows = {
        "x_scale": 1 / alpha[:-1],
        "out_scale": sigma[:-1] / alpha[:-1],
        "x0_weight": gain * (1 + slope),
        "x_weight": alpha[1:] / alpha[:-1] * kept,  # sigma_t / sigma_s, times e^-h in the SDE form
        "before_weight": -gain * slope,
    }
    return rows | ({"std": sigma[1:] * np.sqrt(1 - kept)} if stochastic else {})
