"""Rows of measurements and their table."""

from __future__ import annotations

from typing import Any

from graftax.evaluate.tables import aligned

Row = dict[str, Any]
Rows = list[Row]


def format_table(rows: Rows) -> str:
    """Rows as text of fixed-width columns, headed by their keys. Numbers stand right, None is a dash."""
    if not rows:
        return ""
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    left = [i for i, value in enumerate(rows[0].values()) if isinstance(value, str)]
    return "\n".join(line.rstrip() for line in aligned(cells, left))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
