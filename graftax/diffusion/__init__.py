"""Noising processes, samplers and guidance. A model is just a function (x, t, y) -> noise and variance."""

from graftax.diffusion.guidance import ModelFn, guided
from graftax.diffusion.process import Process
from graftax.diffusion.sampler import Sampler, sample, unit_noise

__all__ = ["ModelFn", "Process", "Sampler", "guided", "sample", "unit_noise"]
