"""What a search found, of sites or of spans: as JSON types, as bars, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graftax.analyze.search import Search
from graftax.analyze.spans import Span, least_spans
from graftax.evaluate.bench.rows import format_table

Series = dict[str, list[tuple[int, float]]]
"""(block, value) by what the bars are called."""


def sites_record(search: Search) -> tuple[dict[str, Any], Series]:
    """Every site, every set and the best set's edits; the harm of every site by slot."""
    sites = [{"site": str(one.site), "harm": one.harm, "FLOPs saved": one.saved} for one in search.found]
    sets = [
        {"set": name, "sites": len(choice.sites), "FLOPs saved": choice.saved, "joint harm": choice.harm,
         "selector": " ".join(choice.selectors)}
        for name, choice in search.choices.items()
    ]  # fmt: skip
    slots = sorted({one.site.slot for one in search.found})
    series = {slot: [(one.site.block, one.harm) for one in search.found if one.site.slot == slot] for slot in slots}
    return {"sites": sites, "sets": sets, "edits": list(search.edits)}, series


def spans_record(spans: Sequence[Span]) -> tuple[dict[str, Any], Series]:
    """Every span, and by kind of block the edit that drops the one of least cosine influence; the harm of every span."""
    series: Series = {}
    for span in spans:
        series.setdefault(span.kind, []).append((span.lo, span.harm))
    return {"spans": [vars(span) for span in spans], "edits": [span.edit for span in least_spans(spans).values()]}, series


def search_text(record: dict[str, Any], end: str) -> str:
    """Tables of all lists of a record, and its edits under them."""
    tables = [format_table(rows) for name, rows in record.items() if name != "edits"]
    return "\n\n".join([*tables, "\n".join(["best, as edits:", *record["edits"], end])])
