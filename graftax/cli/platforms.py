"""A machine without a TPU hears nothing of it: libtpu, once installed, looks for one on every start, and complains."""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import os

VARIABLE = "JAX_PLATFORMS"
DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")
"""What the kernel shows of a TPU's chips."""

SIGNS = ("TPU_NAME", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "CLOUD_TPU_TASK_ID", "PJRT_DEVICE")
"""Variables that a TPU's host or its launcher sets."""


def leave_out_absent_tpus() -> None:
    """Have jax, which must not have been imported yet, use the CPU alone where libtpu is installed but there is no TPU.

    Only where nothing else could be meant: JAX_PLATFORMS is not set, no plugin of another accelerator is installed, and
    neither devices nor the environment speak of a TPU.
    """
    if importlib.util.find_spec("libtpu") and not (os.environ.get(VARIABLE) or _has_plugins() or _has_tpu()):
        os.environ[VARIABLE] = "cpu"


def _has_plugins() -> bool:
    """Whether jax finds devices of other makers: GPUs come as plugins."""
    return bool(importlib.util.find_spec("jax_plugins") or importlib.metadata.entry_points(group="jax_plugins"))


def _has_tpu() -> bool:
    return any(name in os.environ for name in SIGNS) or any(glob.glob(pattern) for pattern in DEVICES)
