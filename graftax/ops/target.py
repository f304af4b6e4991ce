"""The platform that a program is traced for: that of the default device, unless told otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_TOLD: ContextVar[str | None] = ContextVar("target", default=None)


def target() -> str:
    """ "cpu", "gpu" or "tpu": operators choose among forms that compute the same thing by it."""
    return _TOLD.get() or jax.default_backend()


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
