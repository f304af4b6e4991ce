"""Checks of `Sampling`: every setting by itself, and what goes with which sampler."""

from __future__ import annotations

import math
import sys
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from graftax.diffusion.guidance import check_guidance
from graftax.diffusion.names import LASTS, MULTISTEP, SAMPLERS, SDES, SPACINGS, STRAIGHT, WEAK
from graftax.diffusion.reuse import Table, parse_reuse
from graftax.diffusion.way import Diffusion
from graftax.errors import BadInput, did_you_mean

if TYPE_CHECKING:
    from graftax.diffusion.sampling import Sampling

NUMBERS = {
    "steps": Integral, "cfg_scale": Real, "cfg_channels": Integral, "cfg_power": Real, "eta": Real, "last_size": Real,
    "shift": Real,
}  # fmt: skip


def checked(sampling: Sampling) -> dict[str, Any]:
    """Fields as they are kept. Raises `BadInput` on values out of range, or that do not go with the sampler."""
    for name, kind in NUMBERS.items():
        if (value := getattr(sampling, name)) is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise BadInput(f"{name}: got {value!r}, expected {'an integer' if kind is Integral else 'a number'}")
    for name, known in {"sampler": tuple(SAMPLERS), "spacing": SPACINGS, "last": LASTS, "weak": WEAK}.items():
        if (value := getattr(sampling, name)) not in known:
            raise BadInput(f"{name}: got {value!r}, expected one of {known}{did_you_mean(value, known)}")
    fields = {"cfg_channels": sampling.cfg_channels or None, "last": _checked_ends(sampling), **_checked_tuples(sampling)}
    fields["refresh"] = _checked_refresh(sampling)
    check_guidance(sampling.cfg_scale, fields["cfg_channels"])
    _check_noise(sampling)
    _check_weak(sampling)
    _check_reuse(sampling)
    return fields


def _checked_refresh(sampling: Sampling) -> tuple[int, ...]:
    given = sampling.refresh
    steps = list(given) if isinstance(given, list | tuple | range) else [-1]
    if steps and not (0 in steps and all(isinstance(one, int) and 0 <= one < sampling.steps for one in steps)):
        raise BadInput(f"refresh: got {given!r}, expected steps of 0..{sampling.steps - 1}, 0 among them")
    if steps and (sampling.sampler not in ("euler", "euler_maruyama") or sampling.weak != "null" or sampling.skip):
        raise BadInput("refresh: expected the sampler 'euler' or 'euler_maruyama', and no weak model or skipped positions")
    return tuple(sorted(set(steps)))


def _check_reuse(sampling: Sampling) -> None:
    reuse = parse_reuse(sampling.reuse)
    once = sampling.sampler in ("ddpm", "ddim", "euler", "euler_maruyama", *MULTISTEP)
    plain = sampling.weak == "null" and not (sampling.skip or sampling.refresh or sampling.interval or sampling.cfg_power)
    if reuse is not None and not (once and plain):
        raise BadInput(
            f"reuse: got {reuse.kind} with {sampling.sampler!r}, expected a sampler that calls the model once a step, the "
            "same guidance in all steps, no weak model, skipped positions or refreshed encoder"
        )
    if isinstance(reuse, Table) and len(reuse.computed) != sampling.steps:
        raise BadInput(f"reuse: a table of {len(reuse.computed)} steps, expected {sampling.steps}")


def _checked_ends(sampling: Sampling) -> str:
    name = sampling.sampler
    last = "mean" if name in SDES and sampling.last == "zero" else sampling.last
    spacings, lasts = ("linspace",), ("zero",)
    if name in MULTISTEP:
        spacings, lasts = ("linspace", "time_uniform"), ("zero", "sigma_min")
    elif name in SDES:
        lasts = ("mean", "tweedie", "euler", "none")
    elif name in STRAIGHT:
        spacings, lasts = ("linspace", "sd3", "tail"), ("zero", "euler") if name == "heun" else ("zero",)
    if sampling.spacing not in spacings or last not in lasts:
        raise BadInput(
            f"spacing {sampling.spacing!r}, last {last!r} with {name!r}: expected {' or '.join(map(repr, spacings))} and "
            f"{' or '.join(map(repr, lasts))}"
        )
    if not 0 < sampling.last_size < 1:
        raise BadInput(f"last_size: got {sampling.last_size}, expected a noise fraction, above 0 and below 1")
    shift, shifts = sampling.shift, name in (*STRAIGHT, *SDES)
    if not (shift > 0 and math.isfinite(shift)) or (shift != 1 and not shifts):
        raise BadInput(f"shift: {shift} with {name!r}, expected more than 0 for samplers of flows and 1 for others")
    return last


def _check_noise(sampling: Sampling) -> None:
    if not 0 <= sampling.eta <= (1 if sampling.sampler == "ddim" else 0):
        raise BadInput(f"eta: {sampling.eta} with {sampling.sampler!r}, expected 0..1 for 'ddim' and 0 for others")
    if Diffusion.parse(sampling.diffusion) != Diffusion() and sampling.sampler not in SDES:
        raise BadInput(f"diffusion: {sampling.diffusion!r} with {sampling.sampler!r}, expected it for one of {SDES}")
    if not (sampling.cfg_power >= 0 and math.isfinite(sampling.cfg_power)):
        raise BadInput(f"cfg_power: {sampling.cfg_power}, expected 0 or more, finite")
    if sampling.cfg_power and sampling.sampler == "dopri5":
        raise BadInput(f"cfg_power: {sampling.cfg_power} with 'dopri5', expected 0: it has no steps to count")


def _checked_tuples(sampling: Sampling) -> dict[str, tuple[float, ...] | None]:
    interval = None if sampling.interval is None else _numbers("interval", sampling.interval, 2, most=math.inf)
    if interval is not None and not interval[0] < interval[1]:
        raise BadInput(f"interval: got {sampling.interval}, expected two values of sigma / alpha, rising, from 0")
    churn = _numbers("churn", sampling.churn, 4) if sampling.churn else ()
    if churn and (sampling.sampler != "edm_heun" or not churn[1] < churn[2]):
        raise BadInput(
            f"churn: got {sampling.churn} with {sampling.sampler!r}, expected it for 'edm_heun', S_min below S_max"
        )
    found = {"interval": interval, "churn": churn, "tolerance": _numbers("tolerance", sampling.tolerance, 2)}
    for name, kind, what in (("skip", int, "positions, from 0"), ("skip_span", int | float, "two shares of the steps")):
        value = getattr(sampling, name)
        if not isinstance(value, list | tuple) or not all(isinstance(one, kind) and one >= 0 for one in value):
            raise BadInput(f"{name}: got {value!r}, expected {what}")
        found[name] = tuple(value)
    return found


def _check_weak(sampling: Sampling) -> None:
    skip, span = sampling.skip, sampling.skip_span
    if len(span) != 2 or not span[0] < span[1] <= 1:
        raise BadInput(f"skip_span: got {span}, expected two shares of the steps, rising, 0 to 1")
    if not (sampling.skip_scale >= 0 and math.isfinite(sampling.skip_scale)):
        raise BadInput(f"skip_scale: got {sampling.skip_scale}, expected 0 or more, finite")
    if skip and sampling.cfg_scale == 1:
        raise BadInput(f"skip: got {skip} and no guidance (1), expected cfg_scale above 1")
    if sampling.weak != "null" and sampling.cfg_scale == 1:
        raise BadInput(f"weak: got {sampling.weak!r} and no guidance (1), expected cfg_scale above 1")
    if (sampling.weak == "skip") > bool(skip) or (sampling.weak not in ("null", "skip") and skip):
        raise BadInput(f"weak: got {sampling.weak!r} with skip {skip}, expected positions for 'skip', none for the others")
    if skip and sampling.weak == "null" and sampling.sampler not in ("euler", "ddpm", "ddim", *MULTISTEP):
        raise BadInput(f"skip: got {skip} with {sampling.sampler!r}, expected a sampler that calls the model once a step")
    if skip and sampling.weak == "null" and not sampling.skip_steps:
        raise BadInput(f"skip_span: {span} of {sampling.steps} steps, expected one step or more in between")


def _numbers(name: str, value: Any, count: int, most: float = sys.float_info.max) -> tuple[float, ...]:
    """`value` as so many numbers from 0. Raises `BadInput` on others."""
    numbers = isinstance(value, list | tuple) and all(isinstance(one, Real) and 0 <= float(one) <= most for one in value)
    if not numbers or len(value) != count:
        raise BadInput(f"{name}: got {value!r}, expected {count} numbers from 0")
    return tuple(map(float, value))
