"""The figures of `graftax cost` as text, JSON and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graftax.checkpoint.files import filling
from graftax.evaluate import pictures
from graftax.evaluate.bench.timing import Timing
from graftax.evaluate.latency import seconds_per_image
from graftax.evaluate.result import environment
from graftax.evaluate.roofline import WHOLE, Work
from graftax.evaluate.tables import aligned
from graftax.train.chips import Chip

FILE = "cost.json"


def counted(rows: Sequence[Work], chip: Chip, batch: int, dtype: str) -> str:
    """The counted figures as a table, without a line end."""
    head = [
        "",
        "blocks",
        "parameters",
        "GFLOPs",
        "least MB",
        "FLOPs / byte",
        f"bound on {chip.name}",
        "least ms",
        "saved MB",
    ]
    table = [
        [
            row.name, str(row.count), f"{row.params:,}", f"{row.flops / 1e9:.4g}", f"{row.least_bytes / 1e6:.4g}",
            f"{row.intensity:.4g}", row.bound(chip), f"{1e3 * row.seconds(chip):.4g}", f"{row.saved_bytes / 1e6:.4g}",
        ]
        for row in rows
    ]  # fmt: skip
    ridge = chip.flops / chip.hbm_bandwidth
    about = (
        f"{batch} images, {dtype}; {chip.name}: {chip.flops / 1e12:.4g} TFLOP/s, {chip.hbm_bandwidth / 1e9:.4g} GB/s, "
        f"memory binds below {ridge:.4g} FLOPs / byte. Counted, not run there."
    )
    return "\n".join([*aligned([head, *table]), about])


def measured(times: Mapping[str, Timing], batch: int, steps: int) -> str:
    """The measured figures as a table, without a line end."""
    head = ["", "median ms", "fastest ms", "spread"]
    table = [[k, f"{1e3 * t.median:.4g}", f"{1e3 * t.best:.4g}", f"{t.spread:.0%}"] for k, t in times.items()]
    image = seconds_per_image(times[WHOLE], batch, steps, guided=True)
    per_image = f"one run each on {batch} images; sampling in {steps} steps with guidance: {image:.4g} s per image"
    return "\n".join([*aligned([head, *table]), per_image])


def record(
    rows: Sequence[Work], chip: Chip, batch: int, dtype: str, times: Mapping[str, Timing] | None
) -> dict[str, Any]:
    """All figures as JSON types."""
    return {
        "batch": batch, "dtype": dtype, "chip": asdict(chip), "environment": environment(),
        "counted": {row.name: {**asdict(row), "bound": row.bound(chip), "seconds": row.seconds(chip)} for row in rows},
        "measured_seconds": {name: list(time.seconds) for name, time in (times or {}).items()},
    }  # fmt: skip


def write(folder: Path, record: Mapping[str, Any], rows: Sequence[Work], chip: Chip) -> Path:
    """Write cost.json and roofline.png; returns the folder."""
    points = {row.name: (row.intensity, row.flops / row.seconds(chip)) for row in rows}
    with filling(folder) as fresh:
        (fresh / FILE).write_text(json.dumps(record, indent=1) + "\n")
        pictures.roofline(fresh / "roofline.png", points, chip.name, chip.flops, chip.hbm_bandwidth)
    return folder
