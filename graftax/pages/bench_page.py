"""What `graftax bench operators` has measured, as tables and a page: where each operator wins, and by how much."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from graftax.checkpoint.files import filling
from graftax.evaluate import pictures
from graftax.evaluate.bench import Rows, format_table
from graftax.evaluate.bench.operators import ATTENTION, REST, TRAINING, break_even, break_even_by_cost
from graftax.evaluate.bench.rows import Row
from graftax.evaluate.report import Figure, Report
from graftax.evaluate.result import environment
from graftax.evaluate.tables import aligned
from graftax.pages import common

FILE = "operators.json"
Table = tuple[str, list[list[str]]]
"""What it says, and its rows, the head first."""

ABOUT = (
    "Ratios of interleaved rounds on one machine: times attention's speed, by itself and, in brackets, of a whole DiT block "
    "around it (modulation, norms, MLP), more than which no model gains."
)


def text(name: str, rows: Rows) -> str:
    """The rows of any measurement as text, without a line end."""
    if name != "operators":
        return format_table(rows)
    parts = ["\n".join([title, *aligned(table)]).replace(" \n", "\n") for title, table in tables(rows)]
    return "\n\n".join([*parts, *_notes(rows)])


def write(rows: Rows, folder: Path) -> Path:
    """Write operators.json, curves.png, table.md and operators.html into `folder`; returns the page's path."""
    with filling(folder) as fresh:
        (fresh / FILE).write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
        found, lines = tables(rows), list[str]()
        page = Report("Operators against attention", ABOUT)
        for way, title in (("forward", "Forward"), (TRAINING, "Training")):
            pictures.curves(
                fresh / f"{way}.png", _curves(rows, f"{way}_speedup"), x="tokens", y="times attention's speed", log=True,
                log_x=True, size=(6.4, 4.2),
            )  # fmt: skip
            page.figures([Figure(fresh / f"{way}.png", title)], least="26rem")
        for title, (head, *body) in found:
            page.section(title)
            page.table(head, body)
            lines += [f"**{title}**", "", *_markdown(head, body), ""]
        page.paragraphs(*_notes(rows))
        (fresh / "table.md").write_text("\n".join(lines), encoding="utf-8")
        page.write(fresh / "operators.html", common.footer())
    return folder / "operators.html"


def tables(rows: Rows) -> list[Table]:
    """Where each operator wins, its speed both ways, attention's share of a block, memory."""
    return [
        (
            "Fewest tokens from which it is faster than attention (measured) or has fewer FLOPs (formula, squares up to "
            "65,536)",
            _wins(rows),
        ),
        (f"Forward, {_before(rows)}: times attention's speed (a block's)", _speeds(rows, "forward", "block_speedup")),
        ("Training: times attention's speed (a block's)", _speeds(rows, TRAINING, f"{TRAINING}_block_speedup")),
        ("Attention's share of a DiT block, and the most that a model gains where it costs nothing", _shares(rows)),
        (
            "Working memory of training, MB",
            _by_length(rows, lambda row: _number(row[f"{TRAINING}_temp_mb"], "{:,.0f}")),
        ),
    ]


def _wins(rows: Rows) -> list[list[str]]:
    lengths, found = _lengths(rows), [["", "forward", "training", "by FLOPs"]]
    width, heads = rows[0]["width"], rows[0]["heads"]
    for name in _names(rows, ATTENTION, REST):
        own = [_at(rows, name, n) for n in lengths]
        measured = [break_even(lengths, [row[f"{way}_speedup"] for row in own]) for way in ("forward", TRAINING)]
        cells = [_measured(tokens, lengths) for tokens in measured]
        counted = break_even_by_cost(name, width, heads)
        found.append([name, *cells, "never" if math.isinf(counted) else f"{counted:,.0f}"])
    return found


def _measured(tokens: float | None, lengths: Sequence[int]) -> str:
    if tokens is None:
        return "-"
    if math.isinf(tokens):
        return "not yet"
    return f"{tokens:,.0f} or fewer" if tokens == lengths[0] else f"{tokens:,.0f}"


def _speeds(rows: Rows, way: str, block: str) -> list[list[str]]:
    def cell(row: Row) -> str:
        if row["mixer"] in (ATTENTION, REST) or row[f"{way}_speedup"] is None:
            value = row[f"{way}_ms"]
            return _number(value, "{:,.0f} ms" if value and value >= 100 else "{:.3g} ms")
        return f"{row[f'{way}_speedup']:.2f} ({_number(row[block], '{:.2f}')})"

    return _by_length(rows, cell)


def _shares(rows: Rows) -> list[list[str]]:
    found = [["tokens", "by FLOPs", "measured, forward", "measured, training", "most, by FLOPs"]]
    for n in _lengths(rows):
        attention, rest = (_at(rows, name, n) for name in (ATTENTION, REST))
        counted = attention["gflop"] / (attention["gflop"] + rest["gflop"])
        measured = [_number(attention[key], "{:.0%}") for key in ("share", f"{TRAINING}_share")]
        found.append([f"{n:,}", f"{counted:.0%}", *measured, f"{1 / (1 - counted):.2f} x"])
    return found


def _by_length(rows: Rows, cell: Callable[[Row], str]) -> list[list[str]]:
    lengths = _lengths(rows)
    body = [[name, *(cell(_at(rows, name, n)) for n in lengths)] for name in _names(rows)]
    return [["tokens", *(f"{n:,}" for n in lengths)], *body]


def _curves(rows: Rows, key: str) -> dict[str, list[tuple[float, float]]]:
    points = {
        name: [(row["tokens"], row[key]) for row in rows if row["mixer"] == name and row[key]] for name in _names(rows)
    }
    return {name: found for name, found in points.items() if found}


def _notes(rows: Rows) -> list[str]:
    return [f"{row['mixer']} at {row['tokens']:,} tokens: {row['note']}." for row in rows if row["note"]]


def _before(rows: Rows) -> str:
    return f"load {rows[0]['load']:g} before it"


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---", *["--:"] * (len(head) - 1)], *body)]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _lengths(rows: Rows) -> list[int]:
    return list(dict.fromkeys(row["tokens"] for row in rows))


def _names(rows: Rows, *without: str) -> list[str]:
    return [name for name in dict.fromkeys(row["mixer"] for row in rows) if name not in without]


def _at(rows: Rows, name: str, tokens: int) -> Row:
    return next(row for row in rows if (row["mixer"], row["tokens"]) == (name, tokens))
