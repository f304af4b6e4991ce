"""Backbones: diffusion transformers as functions over (spec, params)."""

from graftax.models.dit import DiT, dit_spec, forward, init, param_shapes, variant
from graftax.models.model import Meta, Model

__all__ = ["DiT", "Meta", "Model", "dit_spec", "forward", "init", "param_shapes", "variant"]
