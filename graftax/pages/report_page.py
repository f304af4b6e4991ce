"""A run folder as one page: what was done, what came out, how it was measured."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graftax.checkpoint.files import filling
from graftax.evaluate import pictures
from graftax.evaluate.labels import labelled, scale_of
from graftax.evaluate.protocol import differences
from graftax.evaluate.report import Figure, Report
from graftax.evaluate.sample_set import open_set
from graftax.models.cost import count_params, flops
from graftax.pages import common, compare_page
from graftax.pages.describe import describe, difference
from graftax.spec import ModelSpec
from graftax.study.run_folder import EVALUATION, TRAININGS, RunFolder, flattened

Curve = list[tuple[float, float]]
_SITE = re.compile(r"error/(?P<part>\w+)\[(?P<block>\d+)[^\]]*\](?:\.(?P<slot>\w+))?")
"""Held-out error of "blocks[3].mixer" or "merges[4,5]"."""

PICTURES = "report"
"""Folder inside the run's for the page's pictures."""


def write(run: RunFolder, folder: Path, shown: int) -> Path:
    """Write FOLDER/report.html with `shown` samples per evaluated model; returns its path."""
    with filling(folder) as fresh:
        _fill(run, fresh, shown)
    return folder / "report.html"


def _fill(run: RunFolder, folder: Path, shown: int) -> None:
    (folder / PICTURES).mkdir()
    page = Report(run.name, _lead(run))
    for part in (_scores, _samples, _trainings, _cost, _edits, _settings):
        part(page, run, folder, shown)
    page.write(folder / "report.html", common.footer())


def _lead(run: RunFolder) -> str:
    model = run.last
    done = [title for name, title in TRAININGS.items() if name in run.records]
    edits = f"Edits: {', '.join(model.meta.edits)}. " if model and model.meta.edits else ""
    return f"{edits}{'; '.join(done) or 'Not trained yet'}."


def _scores(page: Report, run: RunFolder, folder: Path, shown: int) -> None:
    page.section("Scores")
    if not run.results:
        page.verdict(f"Not evaluated yet: graftax evaluate MODEL --out {folder / EVALUATION}/NAME")
        return
    named = [(Path(path).parent.parent.as_posix(), result) for path, result in run.results.items()]
    for space, head, rows in compare_page.tables(named):
        page.section(space)
        page.table(head, rows)
    if lines := differences({path: result.protocol for path, result in run.results.items()}):
        page.verdict("Between these results differ:", *lines)
    page.paragraphs(*dict.fromkeys(f"{result.protocol}." for _, result in named))


def _samples(page: Report, run: RunFolder, folder: Path, shown: int) -> None:
    sets = {name: open_set(path) for name, path in run.samples.items()}
    if not sets:
        return
    same = not differences({name: found.protocol for name, found in sets.items()})
    page.section(
        "Samples",
        "All from the same noise and classes: a picture that looks the same in two grids is one that did not change."
        if same
        else "Drawn under different protocols, so not from the same noise.",
    )
    figures = []
    for name, found in sets.items():
        if found.file(0).exists():
            path = folder / PICTURES / f"samples-{name}.png"
            images, classes = found.read(0)
            pictures.save_png(path, _grid(images[:shown], classes[:shown].tolist()))
            figures.append(Figure(path, name, f"classes {_in_turn(classes[:shown].tolist())}"))
    page.figures(figures, least="20rem")


def _grid(images: np.ndarray, classes: list[int]) -> np.ndarray:
    """Ten in a row, their classes above the columns where each column is of one."""
    columns = min(10, len(images))
    drawn = pictures.grid(images, columns, scale=scale_of(images.shape[2]))
    same = all(one == classes[i % columns] for i, one in enumerate(classes))
    return labelled(drawn, list(map(str, classes[:columns])), columns=True) if same else drawn


def _in_turn(classes: list[int]) -> str:
    """The classes from left to right and down, no more than fit a caption."""
    listed = ", ".join(map(str, classes[:20]))
    return f"{listed}, .." if len(classes) > 20 else listed


def _trainings(page: Report, run: RunFolder, folder: Path, shown: int) -> None:
    for name, lines in run.records.items():
        stem = folder / PICTURES / name.replace(".", "training")
        curves = {
            "training loss": _points(lines, "train", "loss"),
            "held-out loss": _points(lines, "eval", "loss"),
            "relative error of the new operators, held out": _points(lines, "eval", "error"),
            "norm of the gradient": _points(lines, "train", "grad_norm"),
            "images per second": _points(lines, "train", "images_per_s"),
        }
        figures = [
            _curve(Path(f"{stem}-{i}.png"), title, points) for i, (title, points) in enumerate(curves.items()) if points
        ]
        figures += _by_layer(Path(f"{stem}-layers.png"), lines)
        page.section(TRAININGS[name], f"{max(line['step'] for line in lines):,} steps." if lines else "No step logged yet.")
        page.figures(figures, least="20rem")


def _curve(path: Path, title: str, points: Curve) -> Figure:
    pictures.curves(path, {title: points}, x="step", y=title)
    return Figure(path, title.capitalize(), f"last {points[-1][1]:.4g}")


def _by_layer(path: Path, lines: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """The last held-out error of every site, a colour per slot; nothing where the record has no sites."""
    last: Mapping[str, Any] = next((line for line in reversed(lines) if line["split"] == "eval"), {})
    series: dict[str, Curve] = {}
    for key, value in last.items():
        if match := _SITE.fullmatch(key):
            series.setdefault(match["slot"] or match["part"], []).append((int(match["block"]), value))
    if not series:
        return []
    pictures.bars(path, series, x="block", y="relative error")
    return [Figure(path, "Error by block", "1 is what an operator that outputs zeros would score")]


def _points(lines: Sequence[Mapping[str, Any]], split: str, name: str) -> Curve:
    return [(line["step"], line[name]) for line in lines if line["split"] == split and line.get(name) is not None]


def _cost(page: Report, run: RunFolder, folder: Path, shown: int) -> None:
    if run.last is None:
        return
    page.section("The model")
    page.text(describe(run.last.spec, run.last.meta.to_dict()))
    page.table(
        ["", "parameters", "change", "FLOPs / image", "change"],
        [_cost_row(name, model.spec, next(iter(run.models.values())).spec) for name, model in run.models.items()],
    )


def _cost_row(name: str, spec: ModelSpec, first: ModelSpec) -> list[str]:
    row = [name]
    for count in (count_params, flops):
        row += [f"{count(spec):,}", f"{100 * (count(spec) / count(first) - 1):+.2f} %"]
    return row


def _edits(page: Report, run: RunFolder, folder: Path, shown: int) -> None:
    names = list(run.models)
    pairs = list(itertools.pairwise(names)) + ([(names[0], names[-1])] if len(names) > 2 else [])
    if pairs:
        page.section("What changed from model to model")
    for before, after in pairs:
        page.text(f"{before} -> {after}\n{difference(run.models[before], run.models[after])}")


def _settings(page: Report, run: RunFolder, folder: Path, shown: int) -> None:
    if run.settings:
        page.section("Settings")
        page.text("\n".join(f"{key} = {value}" for key, value in flattened(run.settings).items()))
    if run.results:
        page.section("Environment of the evaluations")
        page.text(
            "\n".join(dict.fromkeys(", ".join(f"{k} {v}" for k, v in r.environment.items()) for r in run.results.values()))
        )
