"""`Sampling`: how images are drawn, as one value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from graftax.diffusion.names import MULTISTEP, ODES, SAMPLERS, SDES, Last, Sampler, Spacing, Weak
from graftax.diffusion.process import DATA, Process
from graftax.diffusion.reuse import parse_reuse
from graftax.diffusion.sampling_checks import checked
from graftax.diffusion.times import shifted
from graftax.errors import BadInput
from graftax.paths import SIGMA_MAX, SIGMA_MIN

RHO = 7.0
"""How much denser EDM's sigmas are towards the data (Karras et al. 2022, Table 1)."""
LEAST = 1 / 1000
"""The least noise fraction that flows are trained at in SD3's code, before it is shifted."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How images are drawn from a model. Raises BadInput on values out of range.

    Attributes:
        sampler: "ddpm", ancestral with the learned variance, "ddim", "dpmpp_2m" or its SDE form "sde_dpmpp_2m"
            (`graftax.diffusion.denoise`). Of flows and all that can be taken for one: "euler", "heun", "midpoint", "dopri5",
            adaptive, which takes as many steps as it needs; with noise "euler_maruyama" and "sde_heun"
            (`graftax.diffusion.walk`); in EDM's terms "edm_heun".
        steps: intervals that the way from noise to data is cut into. The model is called once in each, twice by Heun's
            methods and "midpoint".
        cfg_scale: classifier-free guidance; 1 is none.
        cfg_channels: guide the first so many channels; 0 or None: all. DiT guides 3 of its 4.
        interval: guide only the steps that begin at a sigma / alpha in (interval[0], interval[1]]; in others the model is
            called once (Kynkaanniemi et al. 2024, arXiv 2404.07724). None: all.
        cfg_power: let the guidance rise from 1 to `cfg_scale` by 1 - cos(pi p^cfg_power), p the share of the steps that is
            done (MDT, arXiv 2303.14389); 0: constant.
        weak: what is guided away from: "null", the model without its conditions; with them "model", another one
            (autoguidance, Karras et al. 2024, arXiv 2406.02507), "skip", the model without its positions `skip`,
            "policy", the model with tokens that go around blocks, say (TREAD, arXiv 2501.04765), and "representation", the
            model with zeros for the features that it denoises beside its latents (ReDi, arXiv 2504.16064).
        eta: noise of DDIM, 0 to 1.
        spacing: of the times of "dpmpp_2m" and its SDE form: "linspace" rounds them to the process' steps, as diffusers
            does, "time_uniform" does not, as PixArt's own solver, which ends at "sigma_min". Of flows: "linspace" cuts the
            noise fraction 1 .. 0 evenly, as Flux does, "sd3" cuts 1 .. the shifted 1/1000 into one interval less, as SD3 and
            AuraFlow do, and the last one leads to the data; "tail" cuts 1 .. `last_size` so, as DDT and all with noise.
        last: where DPM-Solvers end: "zero", at the data, or "sigma_min", at the process' step 0, with a trace of noise. The
            last interval of "heun" by "euler", as REPA's. That of flows with noise, without any: "mean", drift and score
            ("zero" is this), "euler", the velocity alone, "tweedie", to the expected data; "none": it is as all others.
        last_size: of that interval, in noise fractions.
        shift: of the noise fractions of flows, after they are cut (`graftax.diffusion.shifted`); 1 leaves them.
        diffusion: noise of "euler_maruyama" and "sde_heun" (`graftax.diffusion.way.Diffusion`): "sigma", "sbdm(0.5)", ..
        churn: of "edm_heun": S_churn, S_min, S_max and S_noise (Karras et al. 2022, Algorithm 2); () is none.
        tolerance: relative and absolute, of "dopri5".
        skip: positions of the program that a third, weaker pass leaves out, from which the guided prediction is led away
            (skip-layer guidance, as SD3.5-medium is published: 7, 8, 9), or that of `weak`; () is none.
        skip_scale: how far.
        skip_span: in which steps: i of n where skip_span[0] n < i < skip_span[1] n.
        refresh: of a model of two stages, a DDT, the steps in which its encoder runs, 0 among them; in others what it made
            is kept, for guidance's other pass as well (`graftax.diffusion.sharing`). () is all.
        reuse: what is taken from earlier steps in place of computing it, as text (`graftax.diffusion.reuse`):
            "first_block(0.1)", or a table; "" is nothing.
    """

    sampler: Sampler = "ddim"
    steps: int = 50
    cfg_scale: float = 1.5
    cfg_channels: int | None = 3
    interval: tuple[float, float] | None = None
    cfg_power: float = 0.0
    weak: Weak = "null"
    eta: float = 0.0
    spacing: Spacing = "linspace"
    last: Last = "zero"
    last_size: float = 0.04
    shift: float = 1.0
    diffusion: str = "sigma"
    churn: tuple[float, ...] = ()
    tolerance: tuple[float, float] = (1e-3, 1e-6)
    skip: tuple[int, ...] = ()
    skip_scale: float = 2.8
    skip_span: tuple[float, float] = (0.01, 0.2)
    refresh: tuple[int, ...] = ()
    reuse: str = ""

    def __post_init__(self) -> None:
        for name, value in checked(self).items():
            object.__setattr__(self, name, value)
        self.times  # refuses impossible numbers of steps  # noqa: B018

    @property
    def skip_steps(self) -> range:
        """The steps in which the prediction is led away from that without the positions `skip`."""
        low, high = (share * self.steps for share in self.skip_span)
        return range(math.floor(low) + 1, math.ceil(high))

    @property
    def multistep(self) -> bool:
        """Whether a step also looks at what the model said in the step before."""
        return self.sampler in MULTISTEP

    @property
    def flow(self) -> bool:
        """Whether it asks for the velocity of a flow."""
        return self.sampler in (*ODES, *SDES)

    @property
    def noisy(self) -> bool:
        """Whether steps add noise."""
        return self.sampler in ("ddpm", "sde_dpmpp_2m", *SDES) or self.eta > 0 or bool(self.churn)

    @property
    def varies(self) -> bool:
        """Whether guidance differs from step to step."""
        return self.cfg_scale != 1 and (self.interval is not None or self.cfg_power > 0)

    @property
    def times(self) -> np.ndarray:
        """(steps + 1,) float64: the ends of all intervals, noisiest first, in steps of the process, `DATA` (-1) being the
        data; of flows noise fractions, of "edm_heun" sigmas, 0 being the data."""
        return self.times_between()

    def times_between(self, most: float = 1.0, least: float = 0.0) -> np.ndarray:
        """`times`, where a flow goes from the noise fraction `most` to `least`; see `graftax.diffusion.way`."""
        if self.flow:
            return self._fractions(most, least)
        if self.sampler == "edm_heun":
            return self._sigmas()
        process = Process()
        if not self.multistep:
            return np.append(process.respaced(self.steps).timestep_map[::-1], DATA).astype(float)
        if not 1 <= self.steps < process.steps:
            raise BadInput(f"sampling steps: {self.steps}, expected 1..{process.steps - 1}")
        times = np.linspace(0, process.steps - 1, self.steps + 1)
        times = (times.round() if self.spacing == "linspace" else times)[::-1]
        return np.append(times[:-1], DATA) if self.last == "zero" else times

    def _fractions(self, most: float, least: float) -> np.ndarray:
        if self.steps < 1:
            raise BadInput(f"sampling steps: {self.steps}, expected 1 or more")
        if self.spacing == "tail" or (self.sampler in SDES and self.last != "none"):
            return np.append(most * shifted(np.linspace(1, self.last_size / most, self.steps), self.shift), 0.0)
        # Shifted here and again below: the authors' schedules of SD3 and AuraFlow are so.
        end = shifted(LEAST, self.shift) if self.spacing == "sd3" else 1 / self.steps
        return np.append(least + (most - least) * shifted(np.linspace(1, end, self.steps), self.shift), least)

    def _sigmas(self) -> np.ndarray:
        """Karras et al. 2022, Eq. 5."""
        if self.steps < 2:
            raise BadInput(f"sampling steps: {self.steps}, expected 2 or more")
        low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
        return np.append(np.linspace(high, low, self.steps) ** RHO, 0.0)

    @property
    def timesteps(self) -> np.ndarray:
        """(steps,): what the model is called with, noisiest first, int32; float32 where it may lie between two steps, and
        of flows (`graftax.models.prediction.network_times` is what the network itself is given)."""
        whole = self.spacing == "linspace" and not self.flow and self.sampler != "edm_heun"
        return self.times[:-1].astype(np.int32 if whole else np.float32)

    def __str__(self) -> str:
        spacings = {"linspace": "", "time_uniform": ", not rounded", "sd3": ", spaced as in SD3", "tail": ", last"}
        spacing = spacings[self.spacing]
        noise = f", eta {self.eta:g}" if self.eta else ""
        noise += f", diffusion {self.diffusion}" if self.sampler in SDES else ""
        noise += f", churn {', '.join(f'{one:g}' for one in self.churn)}" if self.churn else ""
        tail = f" {self.last_size:g}" if self.sampler in SDES or self.spacing == "tail" else ""
        last = {"zero": tail, "sigma_min": ", to sigma_min"}.get(self.last, f", last {self.last}{tail}")
        shift = f", shift {self.shift:g}" if self.shift != 1 else ""
        kept = f", encoder in {len(self.refresh)} steps {shorthand(self.refresh)}" if self.refresh else ""
        kept += f", {reuse.summary}" if (reuse := parse_reuse(self.reuse)) else ""
        steps = f"{self.steps} steps"
        if self.sampler == "dopri5":
            steps = "tolerance {:g}, {:g}".format(*self.tolerance)
        return f"{SAMPLERS[self.sampler]}, {steps}{spacing}{shift}{last}{noise}, {self._guidance()}{kept}"

    def _guidance(self) -> str:
        if self.cfg_scale == 1:
            return "no guidance"
        channels = "all" if self.cfg_channels is None else f"the first {self.cfg_channels}"
        away = {
            "null": "", "model": " from a weak model", "policy": " from a policy", "skip": f" from skipping {self.skip}",
            "representation": " from no features",
        }[self.weak]  # fmt: skip
        text = f"guidance {self.cfg_scale:g}{away} on {channels} channels"
        text += f", power-cosine {self.cfg_power:g}" if self.cfg_power else ""
        text += f", for sigma/alpha in ({self.interval[0]:g}, {self.interval[1]:g}]" if self.interval else ""
        if self.skip and self.weak != "skip":
            low, high = self.skip_span
            text += f", {self.skip_scale:g} from skipping {self.skip} in {low:g} to {high:g} of the steps"
        return text


def shorthand(steps: tuple[int, ...]) -> str:
    """Steps as text: all of them, but "0, 3, .. 249" where they are evenly spread and many."""
    strides = set(np.diff(steps).tolist())
    if len(steps) > 3 and len(strides) == 1:
        return f"({steps[0]}, {steps[1]}, .. {steps[-1]})"
    return str(steps)


class SamplingFields(TypedDict, total=False):
    """The fields of `Sampling`, for functions that take them as keywords."""

    sampler: Sampler
    steps: int
    cfg_scale: float
    cfg_channels: int | None
    interval: tuple[float, float] | None
    cfg_power: float
    weak: Weak
    eta: float
    spacing: Spacing
    last: Last
    last_size: float
    shift: float
    diffusion: str
    churn: tuple[float, ...]
    tolerance: tuple[float, float]
    skip: tuple[int, ...]
    skip_scale: float
    skip_span: tuple[float, float]
    refresh: tuple[int, ...]
    reuse: str


def check_variance(sampler: Sampler, variance: bool) -> None:
    """Raise BadInput where `sampler` needs a learned variance and the model has none."""
    if sampler == "ddpm" and not variance:
        raise BadInput(
            "sampler 'ddpm': the model has no variance channels, expected another sampler ('ddim' with eta 1 is DDPM with "
            "the smaller fixed variance of Ho et al.)"
        )
