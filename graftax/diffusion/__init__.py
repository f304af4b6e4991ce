"""Noising processes, flows, samplers and guidance. A model is just a function (x, t, conditions) -> noise and variance, or
velocity."""

from graftax.diffusion.flow import Flow, Noising
from graftax.diffusion.guidance import ModelFn, guided
from graftax.diffusion.heldout import Heldout, heldout_set
from graftax.diffusion.names import SAMPLERS, Sampler
from graftax.diffusion.noise import image_keys, initial_noise, unit_noise
from graftax.diffusion.objective import PLAIN, Objective
from graftax.diffusion.process import Process
from graftax.diffusion.sampler import SamplerState, Steps, denoise
from graftax.diffusion.sampling import Sampling, SamplingFields, check_variance
from graftax.diffusion.schedule import schedule
from graftax.diffusion.times import UNIFORM, Times, shifted
from graftax.diffusion.way import Diffusion, Way, way_for

__all__ = [
    "PLAIN", "SAMPLERS", "UNIFORM", "Diffusion", "Flow", "Heldout", "ModelFn", "Noising", "Objective", "Process", "Sampler",
    "SamplerState", "Sampling", "SamplingFields", "Steps", "Times", "Way", "check_variance", "denoise", "guided",
    "heldout_set", "image_keys", "initial_noise", "schedule", "shifted", "unit_noise", "way_for",
]  # fmt: skip
