"""`graftax doctor`: show versions, devices, memory and what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
from typing import Any

from graftax.cli import options
from graftax.errors import BadInput
from graftax.platforms import COMPILED

REQUIRED = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "ml-collections", "clu",
    "safetensors", "ml-dtypes", "numpy", "matplotlib", "pillow", "tqdm",
)  # fmt: skip
OPTIONAL = {
    "torch": "bench", "scipy": "eval", "libtpu": "tpu", "jax-cuda12-plugin": "NVIDIA GPUs",
    "jax-cuda13-plugin": "NVIDIA GPUs", "tensorboardX": "tensorboard", "wandb": "wandb", "treescope": "notebook",
    "argcomplete": "completion", "tokenizers": "text", "huggingface_hub": "hub",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Print the report; raise `BadInput` where a required package is missing."""
    facts: dict[str, Any] = {
        "graftax": _version("graftax") or "not installed as a package",
        "python": f"{platform.python_version()} on {platform.platform()}",
        **{name: _version(name) or "MISSING" for name in REQUIRED},
        **{name: f"{_version(name) or '-'} (optional: {purpose})" for name, purpose in OPTIONAL.items()},
    }
    missing = [name for name in REQUIRED if not _version(name)]
    facts |= {} if missing else _devices()
    options.answer(args, facts, "\n".join(f"{name:<22}{value}" for name, value in facts.items()))
    if missing:
        raise BadInput(f"packages missing: {', '.join(missing)}; run pip install -e .")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, str]:
    """What the machine has, by name."""
    import jax
    import jax.numpy as jnp

    from graftax.checkpoint.shipped import SHIPPED, is_there
    from graftax.train.chips import chip_of

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {"host": f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB memory"}
    for device in jax.devices():
        limit = (device.memory_stats() or {}).get("bytes_limit")
        found[f"device {device.id}"] = device.device_kind + (f", {limit / 2**30:.0f} GiB" if limit else "")
    found["compiled programs"] = os.environ.get(COMPILED) or "not kept"
    chip = chip_of(jax.devices()[0].device_kind)
    peak = f"{chip.flops / 1e12:g} TFLOP/s bfloat16, {chip.hbm_bandwidth / 1e9:g} GB/s" if chip else "unknown"
    found["peak of a chip"] = peak
    found["a sum on it"] = f"{float(jnp.arange(4.0).sum()):g} (expected 6)"
    for kind, name in SHIPPED:
        found[f"{name} {kind}"] = "there" if is_there(name, kind) else "not shipped yet"
    return found
