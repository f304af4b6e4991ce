"""A tiny Flux and a tiny SD3 whose joint attentions are grafted, and batches for them: for tests of both stages."""

import functools

import jax
import numpy as np

from graftax.backbones.flux import flux_spec
from graftax.backbones.sd3 import sd3_spec
from graftax.models import Model
from graftax.surgery import compose, graft, replace
from graftax.testing import random_params

SIZES = {"input_size": 8, "in_channels": 4, "hidden_size": 24, "num_heads": 2, "text_width": 6, "text_tokens": 5}
FLUX = flux_spec(**SIZES, pooled_width=4, double=2, single=1)
SD3 = sd3_spec(**SIZES, pooled_width=4, depth=2, positions=4, qk_norm="rms")
SPECS = {"flux": FLUX, "sd3": SD3}
GRAFTS = {  # the first word is that of `SPECS`
    "flux": (
        replace("double[0].attn", "joint_hyena_x", init="transplant"),
        replace("double[1].attn", "joint_clear", radius=2, qk_norm="rms", init="transplant"),
    ),
    "sd3": (
        replace("sd3[0].attn", "joint_linear", qk_norm="rms", init="transplant"),
        replace("sd3_last[0].attn", "joint_clear", radius=2, qk_norm="rms", text_out=False),
    ),
    "flux on the grid": (
        replace("double[0].attn", "joint_hyena_2d", init="transplant"),
        replace("double[1].attn", "joint_swa_2d", window=1, qk_norm="rms", init="transplant"),
    ),
    "sd3 on the grid": (
        replace("sd3[0].attn", "joint_hyena_2d", init="transplant"),
        replace("sd3_last[0].attn", "joint_swa_2d", window=1, qk_norm="rms", text_out=False),
    ),
}


@functools.cache
def teacher(name):
    spec = SPECS[name.split()[0]]
    return Model(spec, random_params(spec, jax.random.key(0)))


@functools.cache
def student(name):
    return graft(teacher(name), compose(*GRAFTS[name]), jax.random.key(1))


def arrays(size=8):
    rng = np.random.default_rng(0)
    shapes = {"image": (8, 8, 4), "text": (5, 6), "pooled": (4,)}
    return {name: rng.standard_normal((size, *shape), np.float32) for name, shape in shapes.items()}
