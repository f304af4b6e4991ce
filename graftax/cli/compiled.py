"""Programs that XLA has compiled are kept in the user's cache folder: the same command starts sooner the next time."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
"""jax's own: another folder, or empty for none."""


def keep_compiled() -> None:
    """Name the folder to jax, which must not have been imported yet. What the user has set stays."""
    os.environ.setdefault(VARIABLE, str(folder()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")


def folder() -> Path:
    """One for each kind of processor, since homes are shared and programs for a CPU use all that it has."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "graftax" / "compiled" / _processor()


def _processor() -> str:
    """Eight hex digits that are the same where a processor has the same instructions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    known = {line for line in lines if line.split(":")[0].strip() in ("model name", "flags", "Features", "CPU part")}
    return hashlib.sha256("\n".join([platform.machine(), *sorted(known)]).encode()).hexdigest()[:8]
