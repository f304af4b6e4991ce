"""What the pages of experiments share: how things were measured, grids of samples, the last line."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import jax

from graftax.evaluate import pictures
from graftax.evaluate.drawing import Score
from graftax.evaluate.labels import class_columns
from graftax.study.experiment import TIMED_BATCH, TIMED_ROUNDS, Judged


def judge_text(real: Score, real_counts: tuple[int, int], features: int) -> str:
    """What the two scores mean. `real_counts`: real images in the reference, and held out."""
    return (
        f"Judge: a small classifier shipped with this demo, which calls {real.accuracy:.1%} of "
        f"{real_counts[1]:,} held-out real images right. Class accuracy is the share of samples that it calls by the "
        f"class they were drawn for. The Fréchet distance compares its {features} features of the samples with those "
        f"of {real_counts[0]:,} real training images; it is not the FID of papers, and only good for comparing rows "
        "of this table. Few samples raise it for all rows alike."
    )


def forward_text() -> str:
    """How forward times, FLOPs and parameters come about."""
    return (
        f"Forward: median of {TIMED_ROUNDS} passes over {TIMED_BATCH} images, the models taking turns. FLOPs and "
        "parameters follow from the specification. On so few tokens attention is a small part of the work; what a graft "
        "saves grows with their number."
    )


def save_grid(path: Path, judged: Judged, classes: Sequence[str], rows: int) -> None:
    """The first samples as a PNG, a column with its name per class."""
    pictures.save_png(path, class_columns(judged.samples, classes, rows))


def footer() -> str:
    """Versions, date, machine."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {jax.devices()[0].device_kind}"
    return f"graftax {version('graftax')}, jax {jax.__version__}, {datetime.date.today().isoformat()}, {machine}"
