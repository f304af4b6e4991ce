"""The platform that a program is traced for: that of the default device, unless told otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

from graftax.errors import BadInput

KERNELS = "GRAFTAX_KERNELS"
"""The switch of graftax's own TPU kernels, in the environment: "on", which it is where unset, or "off"."""

CORE_MEMORY = {"TPU v5 lite": 128, "TPU v5e": 128, "TPU v6 lite": 128, "TPU v6e": 128, "TPU v5": 64, "TPU7x": 64}
"""Memory (VMEM) of a core in MiB by jax's `device_kind`, as in `jax.experimental.pallas.tpu.get_tpu_info`; others: 16."""

_TOLD: ContextVar[tuple[str, str] | None] = ContextVar("target", default=None)


def target() -> str:
    """ "cpu", "gpu" or "tpu": operators choose among forms that compute the same thing by it."""
    told = _TOLD.get()
    return told[0] if told else jax.default_backend()


def core_memory() -> int:
    """Bytes of memory on a TPU's core, of which kernels make use."""
    told = _TOLD.get()
    return 2**20 * CORE_MEMORY.get(told[1] if told else jax.local_devices()[0].device_kind, 16)


def kernels() -> bool:
    """Whether operators use graftax's own kernels (`graftax.ops.pallas`): on TPUs, unless `KERNELS` is "off".

    Raises `BadInput` where it is neither "on" nor "off".
    """
    switch = os.environ.get(KERNELS, "on")
    if switch not in ("on", "off"):
        raise BadInput(f"{KERNELS}: got {switch!r}, expected on or off")
    return target() == "tpu" and switch == "on"


@contextmanager
def compiling_for(platform: str, kind: str = "") -> Iterator[None]:
    """Trace for `platform` instead, as compiling ahead of time does on another machine; `kind`: jax's `device_kind` there.

    jax remembers what it traced, and not for which target: functions that already ran in this process keep their form.
    """
    token = _TOLD.set((platform, kind))
    try:
        yield
    finally:
        _TOLD.reset(token)
