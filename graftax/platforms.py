"""What this machine computes on, found out before jax starts: from the files that the system shows and from variables."""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import os

VARIABLE = "JAX_PLATFORMS"
COMPILED = "JAX_COMPILATION_CACHE_DIR"
"""jax's folder of compiled programs; empty for none."""

LEAST_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
"""Of compiling, for a program to be kept there."""

DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")
"""What the kernel shows of a TPU's chips."""

SIGNS = ("TPU_NAME", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "CLOUD_TPU_TASK_ID", "PJRT_DEVICE")
"""Variables that a TPU's host or its launcher sets."""


def only_cpu() -> bool:
    """Whether jax will find nothing but the CPU: told so by JAX_PLATFORMS, or, where that is not set, no plugin of another
    accelerator is installed and neither devices nor the environment speak of a TPU."""
    chosen = os.environ.get(VARIABLE)
    return chosen == "cpu" if chosen else not (_has_plugins() or _has_tpu())


def leave_out_absent_tpus() -> None:
    """Have jax, which must not have been imported yet, use the CPU alone where libtpu is installed but there is no TPU:
    libtpu looks for one on every start, and complains."""
    if importlib.util.find_spec("libtpu") and not os.environ.get(VARIABLE) and only_cpu():
        os.environ[VARIABLE] = "cpu"


def _has_plugins() -> bool:
    """Whether jax finds devices of other makers: GPUs come as plugins."""
    return bool(importlib.util.find_spec("jax_plugins") or importlib.metadata.entry_points(group="jax_plugins"))


def _has_tpu() -> bool:
    return any(name in os.environ for name in SIGNS) or any(glob.glob(pattern) for pattern in DEVICES)
