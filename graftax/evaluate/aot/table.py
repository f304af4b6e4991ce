"""Measurements of compiled programs as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graftax.evaluate.aot.measure import UTILISATION
from graftax.evaluate.bench.rows import format_table

GB, MB, TERA = 1e9, 1e6, 1e12


def format_report(rows: Sequence[dict[str, Any]]) -> str:
    """Tables of the steps and of what each sends between chips in one call, and the compiler's complaints. GB: 1e9 bytes."""
    steps = format_table([_step(row) for row in rows])
    sent = [_sent(row, kind, found) for row in rows for kind, found in (row["collectives"] or {}).items()]
    complaints = [f"{row['step']}: {line}" for row in rows for line in row["warnings"]]
    notes = [
        "Computed by the compiler and from FLOP counts, not run. Bytes are those of one chip; collectives in loops count as "
        "often as the loop runs, all branches of a switch count.",
        *complaints,
    ]
    return "\n\n".join(filter(None, [steps, format_table(sent), "\n".join(notes)]))


def _step(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "step": row["step"], "chips": row["chips"], "batch": row["batch"], "fits": "yes" if row["fits"] else "no",
        "peak GB": _over(row["peak_bytes"], GB), "arguments GB": _over(row["argument_bytes"], GB),
        "temporary GB": _over(row["temporary_bytes"], GB), "code MB": _over(row["code_bytes"], MB),
        "TFLOPs": row["flops"] / TERA, f"ms at {UTILISATION:.0%}": 1000 * row["seconds"],
        "warnings": len(row["warnings"]), "compile s": row["compile_s"],
    }  # fmt: skip


def _sent(row: dict[str, Any], kind: str, found: dict[str, int]) -> dict[str, Any]:
    return {"step": row["step"], "collective": kind, "count": found["count"], "MB": found["bytes"] / MB}


def _over(number: int | None, unit: float) -> float | None:
    return None if number is None else number / unit
