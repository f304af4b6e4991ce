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
from graftax.evaluate.roofline import WHOLE, Work, least_seconds
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


def gain(before: Sequence[Work], after: Sequence[Work], chip: Chip) -> str:
    """What an edit gains, without a line end, by `least_seconds` of the rows before and after it."""
    old, new = least_seconds(before, chip), least_seconds(after, chip)
    return (
        f"operators one after the other, least ms on {chip.name}: {1e3 * old:.4g} before, {1e3 * new:.4g} after: "
        f"{old / new:.3f} x as fast. A prediction, not run there."
    )


def measured(times: Mapping[str, Timing], batch: int, steps: int) -> str:
    """The measured figures as a table, without a line end."""
    head = ["", "median ms", "fastest ms", "spread"]
    table = [[k, f"{1e3 * t.median:.4g}", f"{1e3 * t.best:.4g}", f"{t.spread:.0%}"] for k, t in times.items()]
    image = seconds_per_image(times[WHOLE], batch, steps, guided=True)
    per_image = f"one run each on {batch} images; sampling in {steps} steps with guidance: {image:.4g} s per image"
    return "\n".join([*aligned([head, *table]), per_image])


def record(
    rows: Sequence[Work], chip: Chip, batch: int, dtype: str, times: Mapping[str, Timing] | None,
    edited: Sequence[Work] = (),
) -> dict[str, Any]:  # fmt: skip
    """All figures as JSON types; `edited`: rows of the model after edits, where there are any."""
    found = {
        "batch": batch, "dtype": dtype, "chip": asdict(chip), "environment": environment(),
        "counted": _counts(rows, chip),
        "measured_seconds": {name: list(time.seconds) for name, time in (times or {}).items()},
    }  # fmt: skip
    if not edited:
        return found
    speedup = least_seconds(rows, chip) / least_seconds(edited, chip)
    return {**found, "edited": _counts(edited, chip), "predicted_speedup": speedup}


def _counts(rows: Sequence[Work], chip: Chip) -> dict[str, Any]:
    return {row.name: {**asdict(row), "bound": row.bound(chip), "seconds": row.seconds(chip)} for row in rows}


def write(folder: Path, record: Mapping[str, Any], rows: Sequence[Work], chip: Chip) -> Path:
    """Write cost.json and roofline.png; returns the folder."""
    points = {row.name: (row.intensity, row.flops / row.seconds(chip)) for row in rows}
    with filling(folder) as fresh:
        (fresh / FILE).write_text(json.dumps(record, indent=1) + "\n")
        pictures.roofline(fresh / "roofline.png", points, chip.name, chip.flops, chip.hbm_bandwidth)
    return folder
