"""`Sampling`: how images are drawn, as one value; and the one convention for their noise.

Image i of a seed has its own noise, which depends on the seed and on i alone: not on the batch that it is drawn in, nor on
devices, hosts and models (`image_keys`). On one machine and in batches of one size it is therefore drawn to the bit each
time; other batch sizes and processors add up in another order, which shows in the last digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from graftax.diffusion.guidance import check_guidance
from graftax.diffusion.process import DATA, Process
from graftax.diffusion.times import shifted
from graftax.errors import BadInput, did_you_mean

Sampler = Literal["ddpm", "ddim", "dpmpp_2m", "sde_dpmpp_2m", "euler"]
Spacing = Literal["linspace", "time_uniform", "sd3"]
Last = Literal["zero", "sigma_min"]

SAMPLERS: dict[Sampler, str] = {
    "ddpm": "DDPM", "ddim": "DDIM", "dpmpp_2m": "DPM-Solver++ 2M", "sde_dpmpp_2m": "SDE-DPM-Solver++ 2M",
    "euler": "Euler",
}  # fmt: skip
"""Names of samplers, and what papers call them."""
SPACINGS: tuple[Spacing, ...] = ("linspace", "time_uniform", "sd3")
LASTS: tuple[Last, ...] = ("zero", "sigma_min")
LEAST = 1 / 1000
"""The least noise fraction that flows are trained at in SD3's code, before it is shifted."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How images are drawn from a model. Raises BadInput on values out of range.

    Attributes:
        sampler: "ddpm", ancestral with the learned variance, "ddim", "dpmpp_2m" or its SDE form "sde_dpmpp_2m", and for
            models that predict a velocity "euler" (`graftax.diffusion.denoise`).
        steps: intervals that the way from noise to data is cut into, evenly: the model is called once in each.
        cfg_scale: classifier-free guidance; 1 is none.
        cfg_channels: guide the first so many channels; 0 or None: all. DiT guides 3 of its 4.
        eta: noise of DDIM, 0 to 1.
        spacing: of the times of "dpmpp_2m" and its SDE form: "linspace" rounds them to the process' steps, as diffusers
            does, "time_uniform" does not, as PixArt's own solver, which ends at "sigma_min". Of "euler": "linspace" cuts the
            noise fraction 1 .. 0 evenly, as Flux does, "sd3" cuts 1 .. the shifted 1/1000 into one interval less, as SD3 and
            AuraFlow do, and the last one leads to the data.
        last: where DPM-Solvers end: "zero", at the data, or "sigma_min", at the process' step 0, with a trace of noise.
        shift: of the noise fractions of "euler", after they are cut (`graftax.diffusion.shifted`); 1 leaves them.
        skip: positions of the program that a third, weaker pass leaves out, from which the guided prediction is led away
            (skip-layer guidance, as SD3.5-medium is published: 7, 8, 9); () is none.
        skip_scale: how far.
        skip_span: in which steps: i of n where skip_span[0] n < i < skip_span[1] n.
    """

    sampler: Sampler = "ddim"
    steps: int = 50
    cfg_scale: float = 1.5
    cfg_channels: int | None = 3
    eta: float = 0.0
    spacing: Spacing = "linspace"
    last: Last = "zero"
    shift: float = 1.0
    skip: tuple[int, ...] = ()
    skip_scale: float = 2.8
    skip_span: tuple[float, float] = (0.01, 0.2)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cfg_channels", self.cfg_channels or None)
        kinds = {"steps": Integral, "cfg_scale": Real, "cfg_channels": Integral, "eta": Real, "shift": Real}
        for name, kind in kinds.items():
            if (value := getattr(self, name)) is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise BadInput(f"{name}: got {value!r}, expected {'an integer' if kind is Integral else 'a number'}")
        for name, known in {"sampler": tuple(SAMPLERS), "spacing": SPACINGS, "last": LASTS}.items():
            if (value := getattr(self, name)) not in known:
                raise BadInput(f"{name}: got {value!r}, expected one of {known}{did_you_mean(value, known)}")
        if not 0 <= self.eta <= (1 if self.sampler == "ddim" else 0):
            raise BadInput(f"eta: {self.eta} with {self.sampler!r}, expected 0..1 for 'ddim' and 0 for others")
        spacings = ("linspace", "time_uniform") if self.multistep else ("linspace", "sd3") if self.flow else ("linspace",)
        lasts = LASTS if self.multistep else ("zero",)
        if self.spacing not in spacings or self.last not in lasts:
            raise BadInput(
                f"spacing {self.spacing!r}, last {self.last!r} with {self.sampler!r}: expected "
                f"{' or '.join(map(repr, spacings))} and {' or '.join(map(repr, lasts))}"
            )
        if not (self.shift > 0 and math.isfinite(self.shift)) or (self.shift != 1 and not self.flow):
            raise BadInput(f"shift: {self.shift} with {self.sampler!r}, expected more than 0 for 'euler' and 1 for others")
        check_guidance(self.cfg_scale, self.cfg_channels)
        self._check_skip()
        self.times  # refuses impossible numbers of steps  # noqa: B018

    def _check_skip(self) -> None:
        for name, kind, what in (("skip", int, "positions, from 0"), ("skip_span", int | float, "two shares of the steps")):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or not all(isinstance(one, kind) and one >= 0 for one in value):
                raise BadInput(f"{name}: got {value!r}, expected {what}")
            object.__setattr__(self, name, tuple(value))
        if len(self.skip_span) != 2 or not self.skip_span[0] < self.skip_span[1] <= 1:
            raise BadInput(f"skip_span: got {self.skip_span}, expected two shares of the steps, rising, 0 to 1")
        if not (self.skip_scale >= 0 and math.isfinite(self.skip_scale)):
            raise BadInput(f"skip_scale: got {self.skip_scale}, expected 0 or more, finite")
        if self.skip and self.cfg_scale == 1:
            raise BadInput(f"skip: got {self.skip} and no guidance (1), expected cfg_scale above 1")
        if self.skip and not self.skip_steps:
            raise BadInput(f"skip_span: {self.skip_span} of {self.steps} steps, expected one step or more in between")

    @property
    def skip_steps(self) -> range:
        """The steps in which the prediction is led away from that without the positions `skip`."""
        low, high = (share * self.steps for share in self.skip_span)
        return range(math.floor(low) + 1, math.ceil(high))

    @property
    def multistep(self) -> bool:
        """Whether a step also looks at what the model said in the step before."""
        return self.sampler in ("dpmpp_2m", "sde_dpmpp_2m")

    @property
    def flow(self) -> bool:
        """Whether it is for models that predict the velocity of a flow."""
        return self.sampler == "euler"

    @property
    def noisy(self) -> bool:
        """Whether steps add noise."""
        return self.sampler in ("ddpm", "sde_dpmpp_2m") or self.eta > 0

    @property
    def times(self) -> np.ndarray:
        """(steps + 1,) float64: the ends of all intervals, noisiest first, in steps of the process, `DATA` (-1) being the
        data; of "euler" noise fractions, 0 being the data. The model is called at all but the last."""
        if self.flow:
            return self._fractions()
        process = Process()
        if not self.multistep:
            return np.append(process.respaced(self.steps).timestep_map[::-1], DATA).astype(float)
        if not 1 <= self.steps < process.steps:
            raise BadInput(f"sampling steps: {self.steps}, expected 1..{process.steps - 1}")
        times = np.linspace(0, process.steps - 1, self.steps + 1)
        times = (times.round() if self.spacing == "linspace" else times)[::-1]
        return np.append(times[:-1], DATA) if self.last == "zero" else times

    def _fractions(self) -> np.ndarray:
        if self.steps < 1:
            raise BadInput(f"sampling steps: {self.steps}, expected 1 or more")
        # Shifted here and again below: the authors' schedules of SD3 and AuraFlow are so.
        least = shifted(LEAST, self.shift) if self.spacing == "sd3" else 1 / self.steps
        return np.append(shifted(np.linspace(1, least, self.steps), self.shift), 0.0)

    @property
    def timesteps(self) -> np.ndarray:
        """(steps,): what the model is called with, noisiest first, int32; float32 where it may lie between two steps, and
        of "euler" (`graftax.models.prediction.network_times` is what the network itself is given)."""
        whole = self.spacing == "linspace" and not self.flow
        return self.times[:-1].astype(np.int32 if whole else np.float32)

    def __str__(self) -> str:
        channels = "all" if self.cfg_channels is None else f"the first {self.cfg_channels}"
        guidance = f"guidance {self.cfg_scale:g} on {channels} channels" if self.cfg_scale != 1 else "no guidance"
        if self.skip:
            low, high = self.skip_span
            guidance += f", {self.skip_scale:g} from skipping {self.skip} in {low:g} to {high:g} of the steps"
        noise = f", eta {self.eta:g}" if self.eta else ""
        spacing = {"linspace": "", "time_uniform": ", not rounded", "sd3": ", spaced as in SD3"}[self.spacing]
        shift = f", shift {self.shift:g}" if self.shift != 1 else ""
        last = ", to sigma_min" if self.last == "sigma_min" else ""
        return f"{SAMPLERS[self.sampler]}, {self.steps} steps{spacing}{shift}{last}{noise}, {guidance}"


class SamplingFields(TypedDict, total=False):
    """The fields of `Sampling`, for functions that take them as keywords."""

    sampler: Sampler
    steps: int
    cfg_scale: float
    cfg_channels: int | None
    eta: float
    spacing: Spacing
    last: Last
    shift: float
    skip: tuple[int, ...]
    skip_scale: float
    skip_span: tuple[float, float]


def check_variance(sampler: Sampler, variance: bool) -> None:
    """Raise BadInput where `sampler` needs a learned variance and the model has none."""
    if sampler == "ddpm" and not variance:
        raise BadInput(
            "sampler 'ddpm': the model has no variance channels, expected another sampler ('ddim' with eta 1 is DDPM with "
            "the smaller fixed variance of Ho et al.)"
        )


def image_keys(key: jax.Array, first: int, count: int) -> jax.Array:
    """Keys (count,) of the noise of images first .. first + count - 1 of one root key."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(first, first + count))


def unit_noise(keys: jax.Array, number: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unit Gaussian noise (b, *shape) float32 for a step's `number`, of one key for each image (b,)."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(keys)


def initial_noise(keys: jax.Array, steps: int, shape: tuple[int, ...]) -> jax.Array:
    """The noise (b, *shape) float32 that sampling in `steps` steps starts from."""
    return unit_noise(keys, steps, shape)
