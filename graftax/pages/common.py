"""What the pages of experiments share: how things were measured, grids of samples, the last line."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path

import jax

from graftax.evaluate import pictures
from graftax.study.examiners import Examiner
from graftax.study.experiment import TIMED_BATCH, TIMED_ROUNDS, Judged


def forward_text() -> str:
    """How forward times, FLOPs and parameters come about."""
    return (
        f"Forward: median of {TIMED_ROUNDS} passes over {TIMED_BATCH} images, the models taking turns. FLOPs and "
        "parameters follow from the specification. On so few tokens attention is a small part of the work; what a graft "
        "saves grows with their number."
    )


def save_grid(path: Path, judged: Judged, examiner: Examiner) -> None:
    """The first samples as a PNG, with what they should show."""
    pictures.save_png(path, examiner.grid(judged.samples))


def footer() -> str:
    """Versions, date, machine."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {jax.devices()[0].device_kind}"
    return f"graftax {version('graftax')}, jax {jax.__version__}, {datetime.date.today().isoformat()}, {machine}"
