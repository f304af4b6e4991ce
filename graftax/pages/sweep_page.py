"""A sweep's findings: one table as text, Markdown and HTML, with pictures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from graftax.checkpoint.files import filling
from graftax.evaluate import pictures
from graftax.evaluate.report import Figure, Report
from graftax.evaluate.tables import aligned
from graftax.pages import common
from graftax.study.experiment import STAGES
from graftax.study.sweep import RESULTS, Findings, Run

POINTS = 1.0
"""How many points of class accuracy a graft may lose and still count as good as the teacher in the verdict."""

HEAD = (
    "", "parameters", "FLOPs / image", "forward", "stage-1 error",
    "accuracy, no training", "accuracy, stage 1", "accuracy, stage 2",
    "Fréchet, no training", "Fréchet, stage 1", "Fréchet, stage 2",
)  # fmt: skip


def write(found: Findings, folder: Path) -> Path:
    """Write table.md, pictures and report.html into `folder`; returns the page's path."""
    with filling(folder) as fresh:
        _fill(found, fresh, folder)
    return folder / "report.html"


def _fill(found: Findings, folder: Path, kept: Path) -> None:
    """Write the page and what is new into `folder`; pictures of the runs are in `kept`."""
    head, rows = table(found)
    (folder / "table.md").write_text(markdown(head, rows), encoding="utf-8")
    page = Report(
        "Grafts side by side",
        "Each row takes the same diffusion transformer, exchanges some of its operators, teaches the new ones what the old "
        "ones did (stage 1) and tunes the whole model briefly (stage 2). Budget, noise and labels are the same for all.",
    )
    page.verdict(*verdict(found))
    page.section("In numbers")
    page.table(head, rows, strong=(0,))
    _charts(page, found, folder)
    _samples(page, found, folder, kept)
    _protocol(page, found)
    page.write(folder / "report.html", common.footer())


def verdict(found: Findings) -> list[str]:
    """The variant nearest to real images, the cheapest one as good as the teacher, and what failed."""
    whole = [(name, runs) for name, runs in _by_variant(found) if not any(run.failure for run in runs)]
    lines = [
        f"{name}, seed {run.seed}, failed: {run.failure}" for name, runs in _by_variant(found) for run in runs if run.failure
    ]
    if whole:
        name, runs = min(whole, key=lambda item: _mean(item[1], lambda run: run.scores[-1].frechet))
        best = _mean(runs, lambda run: run.scores[-1].frechet)
        lines.insert(
            0, f"Lowest Fréchet distance after stage 2: {name}, {best:.3g} (teacher {found.teacher.score.frechet:.3g})."
        )
        good = [item for item in whole if 100 * (found.teacher.score.accuracy - _accuracy(item[1])) <= POINTS]
        lines.insert(1, _cheapest(found, good))
    return lines


def _cheapest(found: Findings, good: list[tuple[str, list[Run]]]) -> str:
    if not good:
        return f"No variant keeps the teacher's class accuracy ({found.teacher.score.accuracy:.1%}) within {POINTS:g} point."
    name, runs = min(good, key=lambda item: item[1][0].flops)
    return (
        f"Fewest FLOPs among the {len(good)} variants within {POINTS:g} point of the teacher's class accuracy: {name}, "
        f"{_cost(runs[0].flops, found.teacher_size[1])}, accuracy {_accuracy(runs):.1%}."
    )


def table(found: Findings) -> tuple[list[str], list[list[str]]]:
    """Head and rows as text: the teacher, then the variants; over several seeds mean ± standard deviation."""
    score = found.teacher.score
    params, cost = found.teacher_size
    forward = statistics.median(run.forward / run.slowdown for run in found.runs)
    first = ["teacher", f"{params / 1e6:.2f} M", f"{cost / 1e6:.1f} M", f"{1e3 * forward:.1f} ms", ""]
    first += [f"{score.accuracy:.1%}", "", "", f"{score.frechet:.3g}", "", ""]
    return list(HEAD), [first, *(_row(found, name, runs) for name, runs in _by_variant(found))]


def _row(found: Findings, name: str, runs: list[Run]) -> list[str]:
    forward, slowdown = (statistics.fmean(getattr(run, key) for run in runs) for key in ("forward", "slowdown"))
    size = [_cost(runs[0].parameters, found.teacher_size[0]), _cost(runs[0].flops, found.teacher_size[1])]
    row = [name, *size, f"{1e3 * forward:.1f} ms (x {slowdown:.2f})"]
    if any(run.failure for run in runs):
        return [*row, "failed", *[""] * 6]
    errors = [run.error for run in runs if run.error is not None]
    row.append(_spread(errors, lambda value: f"{value:.3f}") if errors else "")
    for i in range(len(STAGES)):
        row.append(_spread([run.scores[i].accuracy for run in runs], lambda value: f"{value:.1%}"))
    for i in range(len(STAGES)):
        row.append(_spread([run.scores[i].frechet for run in runs], lambda value: f"{value:.3g}"))
    return row


def _cost(value: int, teacher: int) -> str:
    return f"{value / 1e6:.2f} M ({100 * (value / teacher - 1):+.1f} %)"


def _spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    mean = show(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {show(statistics.stdev(values))}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in GitHub's Markdown; the first column is text, the others numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def text(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal, columns aligned, heads over two lines where they have a comma."""
    tops = [name.partition(", ")[0] if ", " in name else "" for name in head]
    lows = [name.partition(", ")[2] or name for name in head]
    return "\n".join(aligned([tops, lows, *rows]))


def _charts(page: Report, found: Findings, folder: Path) -> None:
    whole = [(name, runs) for name, runs in _by_variant(found) if not any(run.failure for run in runs)]
    if not whole:
        return
    accuracy, frechet = (
        {
            stage: {name: [getattr(run.scores[i], key) for run in runs] for name, runs in whole}
            for i, stage in enumerate(STAGES)
        }
        for key in ("accuracy", "frechet")
    )
    score = found.teacher.score
    pictures.dots(folder / "accuracy.png", accuracy, x="class accuracy", mark=("teacher", score.accuracy))
    pictures.dots(folder / "frechet.png", frechet, x="Fréchet distance", mark=("teacher", score.frechet), log=True)
    points = {name: (runs[0].flops / 1e6, frechet[STAGES[-1]][name]) for name, runs in whole}
    points["teacher"] = (found.teacher_size[1] / 1e6, [score.frechet])
    pictures.scatter(folder / "cost.png", points, x="M FLOPs / image", y="Fréchet distance after stage 2")
    page.section("Quality by stage, and what it costs")
    page.figures(
        [
            Figure(folder / "accuracy.png", "Class accuracy", "more is better"),
            Figure(folder / "frechet.png", "Fréchet distance", "less is better"),
            Figure(folder / "cost.png", "Fréchet distance against FLOPs", "after stage 2"),
        ],
        least="24rem",
    )


def _samples(page: Report, found: Findings, folder: Path, kept: Path) -> None:
    page.section(
        "The same noise, every model",
        f"After stage 2. Each column is one class: {', '.join(found.class_names)}. Of several seeds the first is shown, the "
        "pictures of the others are beside this page.",
    )
    common.save_grid(folder / "samples-teacher.png", found.teacher, found.class_names, found.config.judging.shown)
    shown = [Figure(folder / "samples-teacher.png", "teacher")]
    shown += [
        Figure(kept / plan.picture, str(plan))
        for plan, run in zip(found.plans, found.runs, strict=True)
        if not run.failure and run.seed == found.config.seeds[0]
    ]
    page.figures(shown, least="20rem")


def _protocol(page: Report, found: Findings) -> None:
    c = found.config
    many = f"{len(c.seeds)} seeds: mean ± standard deviation in the table, from least to largest in the charts"
    seeds = many if len(c.seeds) > 1 else "one seed"
    page.section(
        "How this was measured",
        f"Budget per variant: stage 1 {c.distill.settings.steps} steps of {c.distill.batch_size} images, stage 2 "
        f"{c.finetune.loop.steps} steps of {c.finetune.batch_size}, unless the config gives a variant its own; {seeds}. "
        "The stage-1 error is ||new - old|| / ||old|| of the operators' outputs on held-out images, mean over the new "
        "operators.",
        f"Samples: {found.teacher.score.count} per model, classes in turn, all from the same noise; {c.judging.sample}.",
        common.judge_text(found.real, found.real_counts, found.features),
        f"{common.forward_text()} Each variant took turns with the teacher; the factor is the median of neighbouring "
        "passes.",
        f"All numbers, with held-out losses and the seconds of each run, are in {RESULTS} beside this page.",
    )


def _by_variant(found: Findings) -> list[tuple[str, list[Run]]]:
    return [(name, [run for run in found.runs if run.variant == name]) for name in found.config.variants]


def _accuracy(runs: Sequence[Run]) -> float:
    return _mean(runs, lambda run: run.scores[-1].accuracy)


def _mean(runs: Sequence[Run], value: Callable[[Run], float]) -> float:
    return statistics.fmean(value(run) for run in runs)
