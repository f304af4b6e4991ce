"""graftax: edit pretrained diffusion transformers in JAX/Flax.

import graftax
model = graftax.load("DiT-XL-2-256x256.pt")
student = graftax.graft(model, graftax.replace("blocks[1::2].mixer", "hyena_x", kernel=4), rng=jax.random.key(0))
images = graftax.sample(student, labels, cfg_scale=1.5, rng=jax.random.key(1))

Names are imported when they are first used: `graftax --help` waits neither for JAX nor for Flax.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as typing's, which takes a third of the time in which Ctrl-C still gives a traceback
if TYPE_CHECKING:
    from typing import Any

    from graftax.api import export, export_lora, graft, load, refresh_steps, sample, save, text_encoder
    from graftax.diffusion import Sampling
    from graftax.errors import BadInput, GraftaxError, NonFinite, Preempted
    from graftax.models import Model
    from graftax.spec import BlockSpec, ModelSpec, OpSpec, Step, op
    from graftax.surgery import (
        compose,
        drop,
        hybrid,
        interface,
        inverse,
        lora,
        lora_file,
        merge_lora,
        native,
        parallel_pairs,
        parse,
        replace,
        replay,
        resize,
        tie,
    )

__version__ = "0.2.0"

__all__ = [
    "BadInput", "BlockSpec", "GraftaxError", "Model", "ModelSpec", "NonFinite", "OpSpec", "Preempted", "Sampling", "Step",
    "compose", "drop", "export", "export_lora", "graft", "hybrid", "interface", "inverse", "load", "lora", "lora_file",
    "merge_lora", "native", "op", "parallel_pairs", "parse", "refresh_steps", "replace", "replay", "resize", "sample",
    "save", "text_encoder", "tie",
]  # fmt: skip

_HOMES = {
    "api": ("export", "export_lora", "graft", "load", "refresh_steps", "sample", "save", "text_encoder"),
    "diffusion": ("Sampling",),
    "errors": ("BadInput", "GraftaxError", "NonFinite", "Preempted"),
    "models": ("Model",),
    "spec": ("BlockSpec", "ModelSpec", "OpSpec", "Step", "op"),
    "surgery": (
        "compose", "drop", "hybrid", "interface", "inverse", "lora", "lora_file", "merge_lora", "native", "parallel_pairs",
        "parse", "replace", "replay", "resize", "tie",
    ),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'graftax' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"graftax.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
