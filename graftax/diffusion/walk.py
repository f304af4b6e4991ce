"""The evaluations of samplers that walk along a flow, or down EDM's sigmas: rows of a schedule, in float64.

They are one rule, x + h e, with e the slope of x towards the data at the place where the network looks, which is linear in
x and in what the network says (velocity, noise, of EDM x0); a method of second order looks twice in an interval. Sources:
SiT (Ma et al. 2024, arXiv 2401.08740) and its code for the stochastic ones, Karras et al. 2022 (arXiv 2206.00364, Algorithm
2) for EDM's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from graftax.diffusion.sampling import Sampling
from graftax.diffusion.way import Diffusion, Way
from graftax.errors import BadInput
from graftax.paths import Level, level

Row = dict[str, float]


def walk(sampling: Sampling, way: Way) -> Iterator[Row]:
    """One row for every time that the model is called: fields of `graftax.diffusion.schedule.Step`, `number` the step's and
    `ends` whether the step does. Raises `BadInput` where one is not finite, and on "dopri5"."""
    if sampling.sampler == "dopri5":
        raise BadInput("sampler 'dopri5': chooses its steps as it goes, expected one whose steps are known here")
    times = sampling.times_between(way.most, way.least)
    kinds = {"euler_maruyama": _stochastic, "sde_heun": _stochastic, "edm_heun": _karras}
    for row in kinds.get(sampling.sampler, _ordinary)(sampling, way, times):
        if not all(map(np.isfinite, row.values())):
            raise BadInput(
                f"sampler {sampling.sampler!r}: diffusion {sampling.diffusion!r}, last {sampling.last!r} is not finite at "
                f"the noise fraction {row['timestep']:g} of the path {way.path!r}, expected another diffusion or last"
            )
        yield row


def _ordinary(sampling: Sampling, way: Way, times: np.ndarray) -> Iterator[Row]:
    """Euler, Heun (the explicit trapezoid) and the midpoint rule: e = -v."""
    for i, (t, after) in enumerate(itertools.pairwise(times)):
        h, slope = t - after, _slope(way, t)
        if sampling.sampler == "midpoint":
            yield from _twice(i, t, slope, h / 2, t - h / 2, _slope(way, t - h / 2), (0.0, h))
        elif sampling.sampler == "euler" or (sampling.last == "euler" and i == sampling.steps - 1):
            yield _once(i, t, slope, h)
        else:
            yield from _twice(i, t, slope, h, after, _slope(way, after), (h / 2, h / 2))


def _stochastic(sampling: Sampling, way: Way, times: np.ndarray) -> Iterator[Row]:
    """Euler-Maruyama, and Heun with its noise first: e = -v + w score; the noise's w is that of the interval's start."""
    diffusion, heun = Diffusion.parse(sampling.diffusion), sampling.sampler == "sde_heun"
    tail = sampling.last != "none"
    for i, (t, after) in enumerate(itertools.pairwise(times[:-1] if tail else times)):
        h, w = t - after, diffusion(way.path, t)
        noise = np.sqrt(2 * w * h)
        if heun:
            second = _slope(way, after, diffusion(way.path, after))
            yield from _twice(i, t, _slope(way, t, w), h, after, second, (h / 2, h / 2), lift=noise)
        else:
            yield _once(i, t, _slope(way, t, w), h, std=noise)
    if tail:
        t, extra = times[-2], {"lift" if heun else "std": 0.0}
        w = None if sampling.last == "euler" else diffusion(way.path, t)
        last = _once(sampling.steps - 1, t, _slope(way, t, w), sampling.last_size, **extra)
        if sampling.last == "tweedie":
            x, out = _clean(way, level(way.path, np.float64(t)))
            last |= {"x_scale": x, "out_scale": -out, "x0_weight": 1.0, "x_weight": 0.0}
        yield last


def _karras(sampling: Sampling, way: Way, times: np.ndarray) -> Iterator[Row]:
    """EDM's Heun with churn: e = (x0 - x) / sigma; the last interval, which ends at the data, is Euler's."""
    amount, low, high, scale = sampling.churn or (0.0, 0.0, 0.0, 1.0)
    for i, (sigma, after) in enumerate(itertools.pairwise(times)):
        inside = low <= sigma <= high
        t = sigma * (1 + (min(amount / sampling.steps, np.sqrt(2) - 1) if inside else 0.0))
        extra = {"lift": scale * np.sqrt(t**2 - sigma**2)} if sampling.churn else {}
        slope = {"x_scale": -1 / t, "out_scale": -1 / t}
        if after == 0:
            yield _once(i, t, slope, t, **extra)
        else:
            second = {"x_scale": -1 / after, "out_scale": -1 / after}
            yield from _twice(i, t, slope, t - after, after, second, ((t - after) / 2, (t - after) / 2), **extra)


def _slope(way: Way, t: float, w: float | None = None) -> Row:
    """-v, or -v + w score, at the time t, of x and of what the network says."""
    at = level(way.path, np.float64(t))
    with np.errstate(divide="ignore", invalid="ignore"):
        if way.target == "velocity":  # the score is -(alpha v - alpha' x) / (sigma (alpha sigma' - sigma alpha'))
            gain = 0.0 if w is None else w / (at.sigma * (at.alpha * at.dsigma - at.sigma * at.dalpha))
            return {"x_scale": float(gain * at.dalpha), "out_scale": float(1 + gain * at.alpha)}
        x, out = (at.dalpha * one for one in _clean(way, at))
        return {"x_scale": float(-x), "out_scale": float(out + at.dsigma + (0.0 if w is None else w / at.sigma))}


def _clean(way: Way, at: Level) -> tuple[float, float]:
    """x0 as factors of x and of what the network says, a velocity or noise."""
    if way.target == "velocity":
        turn = at.alpha * at.dsigma - at.sigma * at.dalpha
        return at.dsigma / turn, -at.sigma / turn
    return 1 / at.alpha, -at.sigma / at.alpha


def _once(number: int, t: float, slope: Mapping[str, float], h: float, **extra: float) -> Row:
    """A step in which the model is called once."""
    rule = {"x0_weight": h, "x_weight": 1.0, "before_weight": 0.0}
    return {"timestep": t, **slope, **rule, "number": number, "ends": True, **extra}


def _twice(
    number: int, t: float, slope: Mapping[str, float], h: float, after: float, second: Mapping[str, float],
    weights: tuple[float, float], **extra: float,
) -> Iterator[Row]:  # fmt: skip
    """A step in which it is called again where the first slope leads in h; both count with `weights`."""
    yield {**_once(number, t, slope, h, **extra), "ends": False}
    yield {**_once(number, after, second, weights[1]), "before_weight": weights[0], **dict.fromkeys(extra, 0.0)}
