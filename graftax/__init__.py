"""graftax: edit pretrained diffusion transformers in JAX/Flax.

import graftax
model = graftax.load("DiT-XL-2-256x256.pt")
student = graftax.graft(model, graftax.replace("blocks[1::2].mixer", "hyena_x", kernel=4), rng=jax.random.key(0))
images = graftax.sample(student, labels, cfg_scale=1.5, rng=jax.random.key(1))
"""

from graftax.api import export, graft, load, sample, save
from graftax.errors import BadInput, GraftaxError, NonFinite, Preempted
from graftax.models import Model
from graftax.spec import BlockSpec, ModelSpec, OpSpec, Step, op
from graftax.surgery import compose, drop, hybrid, inverse, lora, merge_lora, parallel_pairs, replace, resize, tie

__version__ = "0.1.0"

__all__ = [
    "BadInput", "BlockSpec", "GraftaxError", "Model", "ModelSpec", "NonFinite", "OpSpec", "Preempted", "Step",
    "compose", "drop", "export", "graft", "hybrid", "inverse", "load", "lora", "merge_lora", "op", "parallel_pairs",
    "replace", "resize", "sample", "save", "tie",
]  # fmt: skip
