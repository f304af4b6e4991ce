"""Where samplers of flows walk, and how noisy their walk is."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graftax.errors import BadInput
from graftax.paths import SIGMA_MAX, ends, level, time_on
from graftax.spec import Prediction

if TYPE_CHECKING:
    from graftax.diffusion.sampling import Sampling

TINY = 1e-3
"""How far the reference stays away from an end where a network tells nothing there (SiT, `check_interval`)."""

FORMS = ("constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing")


@dataclass(frozen=True)
class Way:
    """From noise to data on a path, as far as a network knows it.

    Attributes:
        path: see `graftax.paths`.
        target: what the network is asked for, "velocity", "eps" or "x0".
        most: time of the path at which it starts.
        least: at which its differential equation ends.
        start: what unit Gaussian noise is multiplied by to be x there.
    """

    path: str = "linear"
    target: str = "velocity"
    most: float = 1.0
    least: float = 0.0
    start: float = 1.0


VELOCITY = Prediction("velocity", "noise", variance=False)


def way_for(prediction: Prediction, sampling: Sampling) -> Way:
    """How a model that predicts `prediction` is walked: by samplers of flows on its own path, DDPM's and EDM's on the
    linear.

    The ends are SiT's: noise and score say nothing of x at pure noise, nor at the data; on VP velocities are infinite at the
    data. On a path that is not its own a network starts from what it would start from: DDPM's unit noise, EDM's 80 times it.
    """
    if sampling.sampler == "edm_heun":
        return Way("edm", "x0", SIGMA_MAX, 0.0, SIGMA_MAX)
    if not sampling.flow:
        return Way("ddpm", "eps")
    own, known = prediction.network.path, prediction.network.target == "velocity"
    path = "linear" if prediction.path in ("ddpm", "edm") else prediction.path
    if own == path:
        target = "eps" if prediction.network.target in ("eps", "score") and sampling.sampler != "dopri5" else "velocity"
        return Way(path, target, 1.0 if known or path == "vp" else 1 - TINY, 0.0 if known and path != "vp" else TINY)
    most = float(time_on(path, ends(own)[1]))
    at = level(path, most)
    return Way(path, "velocity", most, 0.0, float(at.sigma if own == "edm" else np.hypot(at.alpha, at.sigma)))


@dataclass(frozen=True)
class Diffusion:
    """The noise w(t) that a stochastic walk adds, dX = (v + w score) dt + sqrt(2 w) dW (SiT, section 2.4).

    With t the data's fraction, n `norm` and d = sigma sigma' - sigma^2 alpha' / alpha (by the noise's): "constant" n, "sbdm"
    n d, "sigma" n sigma, "linear" n (1 - t), "decreasing" (n cos(pi t) + 1)^2 / 4, "increasing-decreasing" n sin(pi t)^2.
    Raises `BadInput` on others.

    Attributes:
        form: one of these.
        norm: n.
    """

    form: str = "sigma"
    norm: float = 1.0

    def __post_init__(self) -> None:
        if self.form not in FORMS or not (self.norm >= 0 and math.isfinite(self.norm)):
            raise BadInput(f"diffusion: got {self}, expected one of {FORMS}, or with a factor, 'sigma(0.5)'")

    @classmethod
    def parse(cls, text: str) -> Diffusion:
        """From "sigma" or "sigma(0.5)". Raises `BadInput` on other text."""
        found = re.fullmatch(r"([\w-]+)(?:\((.+)\))?", str(text))
        try:
            return cls(found[1], float(found[2] or 1)) if found else cls(str(text))
        except ValueError:
            return cls(str(text))

    def __call__(self, path: str, t: float) -> float:
        """w at the noise fraction t of a path."""
        at = level(path, np.float64(t))
        with np.errstate(divide="ignore", invalid="ignore"):
            values = {
                "constant": 1.0, "sbdm": at.sigma * (at.dsigma - at.sigma * at.dalpha / at.alpha), "sigma": at.sigma,
                "linear": t, "increasing-decreasing": np.sin(np.pi * t) ** 2,
            }  # fmt: skip
        if self.form == "decreasing":
            return float((1 - self.norm * np.cos(np.pi * t)) ** 2 / 4)
        return float(self.norm * values[self.form])

    def __str__(self) -> str:
        return self.form if self.norm == 1 else f"{self.form}({self.norm:g})"
