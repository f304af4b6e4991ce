"""Noising processes, samplers and guidance. A model is just a function (x, t, conditions) -> noise and variance."""

from graftax.diffusion.guidance import ModelFn, guided
from graftax.diffusion.heldout import Heldout, heldout_set
from graftax.diffusion.process import Process
from graftax.diffusion.sampler import Steps, denoise
from graftax.diffusion.sampling import (
    SAMPLERS,
    Sampler,
    Sampling,
    SamplingFields,
    image_keys,
    initial_noise,
    unit_noise,
)

__all__ = [
    "SAMPLERS", "Heldout", "ModelFn", "Process", "Sampler", "Sampling", "SamplingFields", "Steps", "denoise", "guided",
    "heldout_set", "image_keys", "initial_noise", "unit_noise",
]  # fmt: skip
