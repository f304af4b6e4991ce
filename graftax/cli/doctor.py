"""`graftax doctor`: show versions, devices, memory and what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform

from graftax.cli.compiled import VARIABLE

REQUIRED = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "ml-collections", "clu",
    "safetensors", "ml-dtypes", "numpy", "matplotlib", "pillow", "tqdm",
)  # fmt: skip
OPTIONAL = {
    "torch": "bench", "scipy": "eval", "libtpu": "tpu", "jax-cuda12-plugin": "NVIDIA GPUs", "tensorboardX": "tensorboard",
    "wandb": "wandb", "treescope": "notebook",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(args: argparse.Namespace) -> None:
    """Print the report; raise `BadInput` where a required package is missing."""
    from graftax.errors import BadInput

    found = {name: _version(name) for name in (*REQUIRED, *OPTIONAL)}
    print(f"{'graftax':<22}{_version('graftax') or 'not installed as a package'}")
    print(f"{'python':<22}{platform.python_version()} on {platform.platform()}")
    for name in REQUIRED:
        print(f"{name:<22}{found[name] or 'MISSING'}")
    for name, purpose in OPTIONAL.items():
        print(f"{name:<22}{found[name] or '-'} (optional: {purpose})")
    if missing := [name for name in REQUIRED if not found[name]]:
        raise BadInput(f"packages missing: {', '.join(missing)}; run pip install -e .")
    _devices()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> None:
    import jax
    import jax.numpy as jnp

    from graftax.nets import small
    from graftax.train.chips import chip_of

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    print(f"{'host':<22}{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB memory")
    for device in jax.devices():
        limit = (device.memory_stats() or {}).get("bytes_limit")
        print(f"{'device ' + str(device.id):<22}{device.device_kind}" + (f", {limit / 2**30:.0f} GiB" if limit else ""))
    print(f"{'compiled programs':<22}{os.environ.get(VARIABLE) or 'not kept'}")
    chip = chip_of(jax.devices()[0].device_kind)
    peak = f"{chip.flops / 1e12:g} TFLOP/s bfloat16, {chip.hbm_bandwidth / 1e9:g} GB/s" if chip else "unknown"
    print(f"{'peak of a chip':<22}{peak}")
    print(f"{'a sum on it':<22}{float(jnp.arange(4.0).sum()):g} (expected 6)")
    for name in ("dit", "autoencoder.safetensors", "classifier.safetensors"):
        print(f"{'demo ' + name.split('.')[0]:<22}{'there' if small.demo_path(name).exists() else 'MISSING'}")
