"""Programs that XLA has compiled are kept in the user's cache folder: the same command starts sooner the next time."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from graftax.platforms import COMPILED, LEAST_SECONDS


def keep_compiled() -> None:
    """Name the folder to jax, which must not have been imported yet. What the user has set stays."""
    os.environ.setdefault(COMPILED, str(folder()))
    os.environ.setdefault(LEAST_SECONDS, "0")  # a start has dozens of 10 ms each


_TROUBLE = re.compile(r"Error (?:reading|writing) persistent compilation cache entry for '([^']*)': (.*)", re.DOTALL)
"""How jax warns of an entry, by its program's name."""


def watch() -> None:
    """Answer jax's warnings of the folder, pages of them where it is full: say so in one line, remove what is cut off.

    jax writes an entry in place and never again, so one that a full disk or a kill has cut off would stay for ever.
    """
    show, told = warnings.showwarning, []

    def answer(message: Warning | str, *where: Any, **more: Any) -> None:
        found = _TROUBLE.match(str(message))
        if not found:
            show(message, *where, **more)
            return
        entries = list(Path(os.environ[COMPILED]).glob(f"{found[1]}-*"))
        for entry in entries:
            entry.unlink(missing_ok=True)
        if not told and not (entries and "reading" in found[0]):
            reason = " ".join(found[2].split())
            told.append(reason)
            print(f"graftax: warning: {os.environ[COMPILED]}: compiled programs are not kept ({reason})", file=sys.stderr)

    warnings.showwarning = answer


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
