"""Noising processes, samplers and guidance. A model is just a function (x, t, conditions) -> noise and variance."""

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

__all__ = [
    "SAMPLERS", "Heldout", "ModelFn", "Process", "Sampler", "SamplerState", "Sampling", "SamplingFields", "Steps",
    "check_variance", "denoise", "guided", "heldout_set", "image_keys", "initial_noise", "unit_noise",
]  # fmt: skip
