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

_TOLD: ContextVar[str | None] = ContextVar("target", default=None)


def target() -> str:
    """ "cpu", "gpu" or "tpu": operators choose among forms that compute the same thing by it."""
    return _TOLD.get() or jax.default_backend()


def kernels() -> bool:
    """Whether operators use graftax's own kernels (`graftax.ops.pallas`): on TPUs, unless `KERNELS` is "off".

    Raises `BadInput` where it is neither "on" nor "off".
    """
    switch = os.environ.get(KERNELS, "on")
    if switch not in ("on", "off"):
        raise BadInput(f"{KERNELS}: got {switch!r}, expected on or off")
    return target() == "tpu" and switch == "on"


@contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Trace for `platform` instead, as compiling ahead of time does on another machine.

    jax remembers what it traced, and not for which target: functions that already ran in this process keep their form.
    """
    token = _TOLD.set(platform)
    try:
        yield
    finally:
        _TOLD.reset(token)
