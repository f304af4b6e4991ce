"""Paths from data to noise, x = alpha x0 + sigma noise: what alpha and sigma are at a time, and back.

    path    its time                         alpha                  sigma
    linear  noise fraction, 0 data 1 noise   1 - t                  t
    gvp     noise fraction                   cos(pi t / 2)          sin(pi t / 2)
    vp      noise fraction                   e^(-t^2 B/4 - t b/2)   sqrt(1 - alpha^2)       b = 0.1, B = 20 - b
    ddpm    steps 0 .. 999                   sqrt(alpha_bar)        sqrt(1 - alpha_bar)
    edm     sigma                            1                      t

Sources: SiT (Ma et al. 2024, arXiv 2401.08740, section 2.3) for the first three, DDPM (arXiv 2006.11239), EDM (Karras et al.
2022, arXiv 2206.00364). Any two are one path up to the scale of x and the pace: what they share is sigma / (alpha + sigma),
which is the linear path's time and the one noise fraction of this package. Numbers, numpy and jax arrays go in and come out.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BETA_START, BETA_END = 1e-4, 0.02  # of DDPM at 1000 steps; other step counts scale both by 1000 / steps
STEPS = 1000
"""Of the discrete process."""
VP_START, VP_END = 0.1, 20.0
SIGMA_DATA = 0.5
"""Deviation of the data that EDM's preconditioner takes for granted."""
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
"""Between which EDM's networks are asked (Karras et al. 2022, Table 1)."""


class Level(NamedTuple):
    """Where on a path: x = alpha x0 + sigma noise.

    Attributes:
        alpha: of the data.
        sigma: of the noise.
        dalpha: how alpha changes with the path's time; None on a path of steps.
        dsigma: likewise.
    """

    alpha: Any
    sigma: Any
    dalpha: Any = None
    dsigma: Any = None

    @property
    def fraction(self) -> Any:
        """sigma / (alpha + sigma): 0 at the data, 1 at the noise."""
        return self.sigma / (self.alpha + self.sigma)


def alpha_bars(steps: int = STEPS) -> np.ndarray:
    """(steps,) float64: the share of the data's variance that is left after every step of DDPM."""
    scale = STEPS / steps
    return np.cumprod(1 - np.linspace(scale * BETA_START, scale * BETA_END, steps, dtype=np.float64))


@functools.cache
def _log_ratios() -> np.ndarray:
    """(STEPS,) float64, rising: ln(sigma / alpha) of DDPM's steps."""
    kept = alpha_bars()
    return 0.5 * (np.log1p(-kept) - np.log(kept))


def level(path: str, t: Any) -> Level:
    """Where time t of any shape, counted as the path counts, is on it. Between DDPM's steps ln(sigma / alpha) is linear;
    beyond them the nearest counts."""
    xp = jnp if isinstance(t, jax.Array) else np
    one = xp.ones_like(t)
    if path == "linear":
        return Level(1 - t, t, -one, one)
    if path == "gvp":
        alpha, sigma, pace = xp.sin((1 - t) * (np.pi / 2)), xp.sin(t * (np.pi / 2)), np.pi / 2  # 0 at their ends
        return Level(alpha, sigma, -pace * sigma, pace * alpha)
    if path == "vp":
        log_alpha = -t * (t * (VP_END - VP_START) / 4 + VP_START / 2)
        alpha, sigma = xp.exp(log_alpha), xp.sqrt(-xp.expm1(2 * log_alpha))
        dalpha = -alpha * (t * (VP_END - VP_START) + VP_START) / 2
        return Level(alpha, sigma, dalpha, -alpha * dalpha / xp.where(sigma > 0, sigma, np.inf))
    if path == "edm":
        return Level(one, t, 0 * one, one)
    log_ratio = xp.interp(t, np.arange(STEPS), _log_ratios())  # DDPM
    return Level((1 + xp.exp(2 * log_ratio)) ** -0.5, (1 + xp.exp(-2 * log_ratio)) ** -0.5)


def time_on(path: str, fraction: Any) -> Any:
    """The path's time where sigma / (alpha + sigma) is `fraction`, 0 to 1: inverse of `level(path, t).fraction`.

    Of DDPM and VP what is beyond their `ends` is taken to be there.
    """
    xp = jnp if isinstance(fraction, jax.Array) else np
    left = 1 - fraction
    if path == "linear":
        return fraction
    if path == "gvp":
        return xp.arctan2(fraction, left) * (2 / np.pi)
    if path == "edm":
        return fraction / left
    least, most = ends(path)
    fraction = xp.clip(fraction, least, most)
    if path == "ddpm":
        return xp.interp(xp.log(fraction / (1 - fraction)), _log_ratios(), np.arange(STEPS, dtype=float))
    half = xp.log1p((fraction / (1 - fraction)) ** 2) / 2  # VP: -ln alpha, a quadratic function of t
    return 2 * half / (VP_START / 2 + xp.sqrt(VP_START**2 / 4 + (VP_END - VP_START) * half))


def ends(path: str) -> tuple[float, float]:
    """The least and the greatest sigma / (alpha + sigma) at which networks of a path are asked: DDPM's from 0.0099 to
    0.9937, VP's to 0.9935, EDM's those of its sigmas."""
    if path in ("ddpm", "edm"):
        least, most = np.exp(_log_ratios()[[0, -1]]) if path == "ddpm" else (SIGMA_MIN, SIGMA_MAX)
        return float(least / (1 + least)), float(most / (1 + most))
    return 0.0, float(level("vp", 1.0).fraction) if path == "vp" else 1.0
