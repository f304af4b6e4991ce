"""`Sampling`: how images are drawn, as one value; and the one convention for their noise.

Image i of a seed has its own noise, which depends on the seed and on i alone: not on the batch that it is drawn in, nor on
devices, hosts and models (`image_keys`). On one machine and in batches of one size it is therefore drawn to the bit each
time; other batch sizes and processors add up in another order, which shows in the last digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, TypedDict

import jax
import jax.numpy as jnp

from graftax.diffusion.guidance import check_guidance
from graftax.diffusion.process import Process
from graftax.errors import BadInput

Sampler = Literal["ddpm", "ddim"]
SAMPLERS: tuple[Sampler, ...] = ("ddpm", "ddim")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How images are drawn from a model. Raises BadInput on values out of range.

    Attributes:
        sampler: "ddpm", ancestral with the learned variance, or "ddim" (`graftax.diffusion.denoise`).
        steps: of the process, evenly spread.
        cfg_scale: classifier-free guidance; 1 is none.
        cfg_channels: guide the first so many channels; 0 or None: all. DiT guides 3 of its 4.
        eta: noise of DDIM, 0 to 1.
    """

    sampler: Sampler = "ddim"
    steps: int = 50
    cfg_scale: float = 1.5
    cfg_channels: int | None = 3
    eta: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "cfg_channels", self.cfg_channels or None)
        for name, kind in {"steps": Integral, "cfg_scale": Real, "cfg_channels": Integral, "eta": Real}.items():
            if (value := getattr(self, name)) is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise BadInput(f"{name}: got {value!r}, expected {'an integer' if kind is Integral else 'a number'}")
        if self.sampler not in SAMPLERS:
            raise BadInput(f"sampler: got {self.sampler!r}, expected one of {SAMPLERS}")
        if not 0 <= self.eta <= (1 if self.sampler == "ddim" else 0):
            raise BadInput(f"eta: {self.eta} with {self.sampler!r}, expected 0..1 for 'ddim' and 0 for 'ddpm'")
        check_guidance(self.cfg_scale, self.cfg_channels)
        self.process  # refuses impossible numbers of steps  # noqa: B018

    @property
    def process(self) -> Process:
        """The noising process at the steps that are taken."""
        return Process().respaced(self.steps)

    def __str__(self) -> str:
        channels = "all" if self.cfg_channels is None else f"the first {self.cfg_channels}"
        guidance = f"guidance {self.cfg_scale:g} on {channels} channels" if self.cfg_scale != 1 else "no guidance"
        noise = f", eta {self.eta:g}" if self.eta else ""
        return f"{self.sampler.upper()}, {self.steps} steps{noise}, {guidance}"


class SamplingFields(TypedDict, total=False):
    """The fields of `Sampling`, for functions that take them as keywords."""

    sampler: Sampler
    steps: int
    cfg_scale: float
    cfg_channels: int | None
    eta: float


def image_keys(key: jax.Array, first: int, count: int) -> jax.Array:
    """Keys (count,) of the noise of images first .. first + count - 1 of one root key."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(first, first + count))


def unit_noise(keys: jax.Array, number: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unit Gaussian noise (b, *shape) float32 for a step's `number`, of one key for each image (b,)."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(keys)


def initial_noise(keys: jax.Array, steps: int, shape: tuple[int, ...]) -> jax.Array:
    """The noise (b, *shape) float32 that sampling in `steps` steps starts from."""
    return unit_noise(keys, steps, shape)
