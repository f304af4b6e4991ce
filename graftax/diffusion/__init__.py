"""Noising processes, flows, samplers and guidance. A model is just a function (x, t, conditions) -> noise and variance, or
velocity."""

from graftax.diffusion.flow import Flow, Noising
from graftax.diffusion.guidance import ModelFn, guided
from graftax.diffusion.heldout import Heldout, heldout_set
from graftax.diffusion.process import Process
from graftax.diffusion.sampler import SamplerState, Steps, denoise
from graftax.diffusion.sampling import (
    SAMPLERS,
    Sampler,
    Sampling,
    SamplingFields,
    check_variance,
    image_keys,
    initial_noise,
    unit_noise,
)
from graftax.diffusion.times import UNIFORM, Times, shifted

__all__ = [
    "SAMPLERS", "UNIFORM", "Flow", "Heldout", "ModelFn", "Noising", "Process", "Sampler", "SamplerState", "Sampling",
    "SamplingFields", "Steps", "Times", "check_variance", "denoise", "guided", "heldout_set", "image_keys", "initial_noise",
    "shifted", "unit_noise",
]  # fmt: skip
