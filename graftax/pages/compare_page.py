"""Several results as a table of text, and as a page with quality drawn against cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from graftax.checkpoint.files import filling
from graftax.evaluate import pictures
from graftax.evaluate.protocol import differences
from graftax.evaluate.report import Figure, Report
from graftax.evaluate.result import LOWER_IS_BETTER, Result, by_space
from graftax.evaluate.tables import aligned
from graftax.pages import common

Named = Sequence[tuple[str, Result]]


def text(named: Named) -> str:
    """One table for each feature space, columns aligned."""
    return "\n\n".join("\n".join([f"features: {space}", *aligned([head, *rows])]) for space, head, rows in tables(named))


def tables(named: Named) -> list[tuple[str, list[str], list[list[str]]]]:
    """For each feature space its name, the columns' heads, and a row per result."""
    return [
        (space, _head(members), [_row(name, result, _metrics(members)) for name, result in members])
        for space, members in by_space(named).items()
    ]


def write(named: Named, folder: Path) -> Path:
    """Write compare.html and its pictures into `folder`; returns the page's path."""
    with filling(folder) as fresh:
        _fill(named, fresh)
    return folder / "compare.html"


def _fill(named: Named, folder: Path) -> None:
    page = Report("Models compared", f"{len(named)} results, each with the protocol that gave it.")
    for i, (space, members) in enumerate(by_space(named).items()):
        page.section(space, f"Reference: {members[0][1].protocol.reference or 'none'}.")
        page.table(*tables(members)[0][1:])
        page.figures(_pictures(members, folder, f"space-{i}"), least="24rem")
        _protocols(page, members)
    page.write(folder / "compare.html", common.footer())


def _pictures(members: Named, folder: Path, stem: str) -> list[Figure]:
    figures = []
    for k, metric in enumerate(_metrics(members)):
        points = {name: (r.cost[1] / 1e6, [r.scores[metric]]) for name, r in members if metric in r.scores}
        path = folder / f"{stem}-{k}.png"
        pictures.scatter(path, points, x="MFLOPs per forward pass and image", y=metric)
        better = "Lower is better." if metric in LOWER_IS_BETTER else "Higher is better."
        figures.append(Figure(path, f"{metric} against cost", better))
    return figures


def _protocols(page: Report, members: Named) -> None:
    found = {name: result.protocol for name, result in members}
    if lines := differences(found):
        page.verdict("The protocols differ, so these numbers do not compare as they stand:", *lines)
    page.section("Protocol", *dict.fromkeys(f"{protocol} ({protocol.hash})" for protocol in found.values()))


def _metrics(members: Named) -> list[str]:
    return list(dict.fromkeys(metric for _, result in members for metric in result.scores))


def _head(members: Named) -> list[str]:
    return ["model", *_metrics(members), "parameters", "FLOPs / image", "images", "protocol"]


def _row(name: str, result: Result, metrics: Sequence[str]) -> list[str]:
    params, operations = result.cost
    scores = [f"{result.scores[metric]:.4g}" if metric in result.scores else "" for metric in metrics]
    count, digest = f"{result.protocol.count:,}", result.protocol.hash
    return [name, *scores, f"{params:,}", f"{operations / 1e6:,.5g} M", count, digest]
