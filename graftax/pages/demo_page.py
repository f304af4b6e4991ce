"""The demo's findings as a page: pictures into a folder, `report.html` with all of them inside, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graftax.checkpoint.files import filling
from graftax.evaluate import pictures
from graftax.evaluate.report import Figure, Report
from graftax.evaluate.score import Measure, Score
from graftax.models.cost import count_params, flops
from graftax.pages import common
from graftax.pages.demo_words import words_of
from graftax.spec import ModelSpec
from graftax.study.demo import Findings
from graftax.study.experiment import STAGES, Branch, Judged
from graftax.study.stages import last_eval
from graftax.train.loop import History

REAL = "real images, held out"


def verdict(found: Findings) -> list[str]:
    """What was found, a sentence or two each."""
    return words_of(found.config.data).verdict(found)


def write(found: Findings, folder: Path) -> Path:
    """Write pictures, results.json and report.html into `folder`; returns the page's path."""
    with filling(folder) as fresh:
        _fill(found, fresh)
    return folder / "report.html"


def _fill(found: Findings, folder: Path) -> None:
    page = Report("Grafting, start to finish", words_of(found.config.data).lead(found))
    page.verdict(*verdict(found))
    _samples(page, found, folder)
    _numbers(page, found)
    _distillation(page, found, folder)
    _finetuning(page, found, folder)
    _others(page, found, folder)
    _protocol(page, found)
    page.write(folder / "report.html", common.footer())
    (folder / "results.json").write_text(json.dumps(_results(found), indent=1) + "\n")


def _samples(page: Report, found: Findings, folder: Path) -> None:
    branch = found.branches[0]
    page.section(
        f"The same noise, {1 + len(branch.all_judged)} models: {branch.name}",
        f"{found.examiner.columns} All models start from the same noise, so a picture that looks the same in two grids is "
        "one that the graft did not change.",
    )
    shown = [found.teacher, *branch.all_judged]
    page.figures([_grid(found, folder, judged, f"0-{i}") for i, judged in enumerate(shown)], "24rem")


def _numbers(page: Report, found: Findings) -> None:
    measures, parts = found.examiner.measures, found.examiner.parts
    page.section("In numbers")
    head = ["", *(one.title for one in measures), "held-out loss", "parameters", "FLOPs / image", "forward"]
    rows = [_row(found, "teacher", "teacher", found.teacher, found.branches[0].report.before)]
    for branch in found.branches:
        rows += [_row(found, branch.name, f"{branch.name}, {j.title}", j, branch.report.after) for j in branch.all_judged]
    rows.append([REAL, *_cells(measures, found.examiner.real), "", "", "", ""])
    page.table(head, rows, strong=_strong(found))
    if parts:
        page.section("By category", "Shares of right pictures of each category of captions.")
        rows = [[name, *_cells(parts, judged.score)] for name, judged in _judged(found).items()]
        rows.append([REAL, *_cells(parts, found.examiner.real)])
        page.table(["", *(one.title for one in parts)], rows, strong=_strong(found))


def _row(found: Findings, timed: str, name: str, judged: Judged, spec: ModelSpec) -> list[str]:
    cost = [f"{count_params(spec):,}", f"{flops(spec) / 1e6:.1f} M", f"{1e3 * found.forward[timed]:.1f} ms"]
    return [name, *_cells(found.examiner.measures, judged.score), f"{judged.loss:.4f}", *cost]


def _cells(measures: Sequence[Measure], score: Score) -> list[str]:
    return [one.text(score[one]) if one.key in score.numbers else "" for one in measures]


def _strong(found: Findings) -> list[int]:
    """The rows of the teacher and of every graft after stage 2."""
    return [i for i, judged in enumerate(_judged(found).values()) if judged.title in ("teacher", STAGES[-1])]


def _judged(found: Findings) -> dict[str, Judged]:
    """All models by the names of their rows."""
    return {
        "teacher": found.teacher,
        **{f"{branch.name}, {judged.title}": judged for branch in found.branches for judged in branch.all_judged},
    }


def _distillation(page: Report, found: Findings, folder: Path) -> None:
    settings = found.config.distill
    page.section(
        "Stage 1: the new operators copy the old ones",
        f"All new operators learn at once, {settings.settings.steps} steps of "
        f"{settings.batch_size} images. The relative error is ||new - old|| / ||old|| on held-out images; 1 is what an "
        "operator that outputs zeros would score.",
    )
    branches = found.branches
    error = {b.name: [(line["step"], line["error"]) for line in b.distilled if line["split"] == "eval"] for b in branches}
    pictures.curves(folder / "stage1-error.png", error, x="step", y="mean relative error")
    pictures.bars(folder / "stage1-layers.png", {b.name: _by_layer(b) for b in branches}, x="block", y="relative error")
    page.figures(
        [
            Figure(folder / "stage1-error.png", "Mean over the new operators", "while they learn"),
            Figure(folder / "stage1-layers.png", "By block", "after stage 1"),
        ],
        least="20rem",
    )


def _finetuning(page: Report, found: Findings, folder: Path) -> None:
    stage = found.config.finetune
    page.section(
        "Stage 2: the whole model, briefly",
        f"{stage.loop.steps} steps of {stage.batch_size} images with the objective the teacher was trained with. "
        f"The teacher's own loss on the held-out images is {found.teacher.loss:.4f}.",
    )
    _losses(page, found, folder, {b.name: (b.judged[1], b.judged[2], b.finetuned) for b in found.branches}, "stage2")
    if adaptation := found.config.adaptation:
        page.section(
            "Stage 2 by adapters alone",
            f"In its place, from the same start: {', '.join(adaptation.edits)}, all else frozen, "
            f"{adaptation.finetune.loop.steps} steps of {adaptation.finetune.batch_size} images.",
        )
        runs = {b.name: (b.judged[1], b.adapted, b.adapting) for b in found.branches if b.adapted}
        _losses(page, found, folder, runs, "adapters")


def _losses(
    page: Report, found: Findings, folder: Path, runs: Mapping[str, tuple[Judged, Judged, History]], name: str
) -> None:
    """Curves of trainings by name, each with the model that it begins with and the one that it ends with."""
    train = {run: _points(history, "train") for run, (_, _, history) in runs.items()}
    last = max(step for points in train.values() for step, _ in points)
    series = {
        run: [(0, first.loss), *(_points(history, "eval") or [(last, final.loss)])]
        for run, (first, final, history) in runs.items()
    }
    series["teacher"] = [(0, found.teacher.loss), (last, found.teacher.loss)]
    pictures.curves(folder / f"{name}-heldout.png", series, x="step", y="loss, held out")
    pictures.curves(folder / f"{name}-train.png", train, x="step", y="loss, training")
    page.figures(
        [
            Figure(folder / f"{name}-heldout.png", "Held-out loss", "of the averaged weights"),
            Figure(folder / f"{name}-train.png", "Training loss", "means between two points"),
        ],
        least="20rem",
    )


def _others(page: Report, found: Findings, folder: Path) -> None:
    for number, branch in enumerate(found.branches[1:], 1):
        page.section(branch.name, *([words_of(found.config.data).others(found)] if number == 1 else []))
        page.figures([_grid(found, folder, j, f"{number}-{i}") for i, j in enumerate(branch.all_judged)], "20rem")


def _protocol(page: Report, found: Findings) -> None:
    page.section(
        "How this was measured",
        *found.examiner.about,
        common.forward_text(),
        f"Teacher: {found.teacher_meta.source or 'unknown source'}; its weights have the SHA-256 {found.teacher_hash[:16]}.",
    )
    page.text("\n\n".join(f"{branch.name}\n{branch.report}" for branch in found.branches))
    page.text("\n".join(f"{seconds:7.1f} s  {title}" for title, seconds in found.seconds.items()))


def _grid(found: Findings, folder: Path, judged: Judged, name: str) -> Figure:
    path = folder / f"samples-{name}.png"
    common.save_grid(path, judged, found.examiner)
    numbers = ", ".join(f"{one.short} {one.text(judged.score[one])}" for one in found.examiner.measures)
    return Figure(path, judged.title, numbers)


def _by_layer(branch: Branch) -> list[tuple[float, float]]:
    final = last_eval(branch.distilled)
    return [(site.block, final[f"error/{site}"]) for site in branch.report.sites]


def _points(history: History, split: str) -> list[tuple[float, float]]:
    """Steps and losses of a record."""
    return [(line["step"], line["loss"]) for line in history if line["split"] == split]


def _results(found: Findings) -> dict[str, Any]:
    """The numbers of the page, JSON types."""
    return {
        "verdict": verdict(found),
        "models": {name: {**j.score.record(), "heldout_loss": j.loss} for name, j in _judged(found).items()},
        "real_heldout": found.examiner.real.record(),
        "forward_seconds": found.forward,
        "layer_errors": {b.name: dict(_by_layer(b)) for b in found.branches},
        "sampling": asdict(found.config.judging.sample),
        "seconds": found.seconds,
    }
