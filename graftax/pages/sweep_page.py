"""A sweep's findings: one table as text, Markdown and HTML, with pictures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from graftax.checkpoint.files import filling
from graftax.evaluate import pictures
from graftax.evaluate.report import Figure, Report
from graftax.evaluate.score import Measure
from graftax.evaluate.tables import aligned
from graftax.pages import common
from graftax.study.experiment import STAGES
from graftax.study.sweep import RESULTS, Findings, Run

HEAD = ("", "parameters", "FLOPs / image", "forward", "stage-1 error")
Table = tuple[list[str], list[list[str]]]
"""Head and rows."""

SHORT_STAGES = ("no training", "stage 1", "stage 2")


def write(found: Findings, folder: Path) -> Path:
    """Write table.md, pictures and report.html into `folder`; returns the page's path."""
    with filling(folder) as fresh:
        _fill(found, fresh, folder)
    return folder / "report.html"


def _fill(found: Findings, folder: Path, kept: Path) -> None:
    """Write the page and what is new into `folder`; pictures of the runs are in `kept`."""
    (folder / "table.md").write_text("\n".join(markdown(*each) for each in tables(found)), encoding="utf-8")
    page = Report(
        "Grafts side by side",
        "Each row takes the same diffusion transformer, exchanges some of its operators, teaches the new ones what the old "
        "ones did (stage 1) and tunes the whole model briefly (stage 2). Budget, noise and labels are the same for all.",
    )
    page.verdict(*verdict(found))
    page.section("In numbers")
    whole, *parts = tables(found)
    page.table(*whole, strong=(0,))
    for part in parts:
        page.section("By category", "Shares of right pictures of each category of captions, after stage 2.")
        page.table(*part, strong=(0,))
    _charts(page, found, folder)
    _samples(page, found, folder, kept)
    _protocol(page, found)
    page.write(folder / "report.html", common.footer())


def verdict(found: Findings) -> list[str]:
    """The variant that draws best, the cheapest one as good as the teacher, and what failed."""
    whole = [(name, runs) for name, runs in _by_variant(found) if not any(run.failure for run in runs)]
    lines = [
        f"{name}, seed {run.seed}, failed: {run.failure}" for name, runs in _by_variant(found) for run in runs if run.failure
    ]
    if whole:
        ranked = found.examiner.ranked
        name, runs = max(whole, key=lambda item: ranked.ahead(_final(item[1], ranked)))
        best, teacher = (ranked.text(value) for value in (_final(runs, ranked), found.teacher.score[ranked]))
        lines.insert(0, f"Best {ranked.title} after stage 2: {name}, {best} (teacher {teacher}).")
        lines.insert(1, _cheapest(found, whole))
    return lines


def _cheapest(found: Findings, whole: list[tuple[str, list[Run]]]) -> str:
    kept, points, teacher = found.examiner.kept, found.examiner.points, found.teacher.score[found.examiner.kept]
    good = [item for item in whole if 100 * (teacher - _final(item[1], kept)) <= points]
    within = f"within {points:g} point{'s' * (points != 1)}"
    if not good:
        return f"No variant keeps the teacher's {kept.title} ({kept.text(teacher)}) {within}."
    name, runs = min(good, key=lambda item: item[1][0].flops)
    return (
        f"Fewest FLOPs among the {len(good)} variants {within} of the teacher's {kept.title}: {name}, "
        f"{_cost(runs[0].flops, found.teacher_size[1])}, {kept.short} {kept.text(_final(runs, kept))}."
    )


def tables(found: Findings) -> list[Table]:
    """`table`, and `parts_table` where there are parts."""
    return [table(found), *([parts_table(found)] if found.examiner.parts else [])]


def table(found: Findings) -> Table:
    """Head and rows as text: the teacher, then the variants; over several seeds mean ± standard deviation."""
    params, cost = found.teacher_size
    forward = statistics.median(run.forward / run.slowdown for run in found.runs)
    first = ["teacher", f"{params / 1e6:.2f} M", f"{cost / 1e6:.1f} M", f"{1e3 * forward:.1f} ms", ""]
    for one in found.examiner.measures:
        first += [one.text(found.teacher.score[one]), "", ""]
    head = [f"{one.short}, {stage}" for one in found.examiner.measures for stage in SHORT_STAGES]
    return [*HEAD, *head], [first, *(_row(found, name, runs) for name, runs in _by_variant(found))]


def parts_table(found: Findings) -> Table:
    """Head and rows as text: what the examiner's parts say of the teacher, and of the variants after stage 2."""
    parts = found.examiner.parts
    rows = [["teacher", *(one.text(found.teacher.score[one]) for one in parts)]]
    for name, runs in _by_variant(found):
        if not any(run.failure for run in runs):
            rows.append([name, *(_spread([run.scores[-1][one] for run in runs], one.text) for one in parts)])
    return ["", *(one.title for one in parts)], rows


def _row(found: Findings, name: str, runs: list[Run]) -> list[str]:
    forward, slowdown = (statistics.fmean(getattr(run, key) for run in runs) for key in ("forward", "slowdown"))
    size = [_cost(runs[0].parameters, found.teacher_size[0]), _cost(runs[0].flops, found.teacher_size[1])]
    row = [name, *size, f"{1e3 * forward:.1f} ms (x {slowdown:.2f})"]
    measures = found.examiner.measures
    if any(run.failure for run in runs):
        return [*row, "failed", *[""] * len(STAGES) * len(measures)]
    errors = [run.error for run in runs if run.error is not None]
    row.append(_spread(errors, lambda value: f"{value:.3f}") if errors else "")
    for one in measures:
        row += [_spread([run.scores[i][one] for run in runs], one.text) for i in range(len(STAGES))]
    return row


def _cost(value: int, teacher: int) -> str:
    return f"{value / 1e6:.2f} M ({100 * (value / teacher - 1):+.1f} %)"


def _spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    mean = show(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {show(statistics.stdev(values))}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """A table in GitHub's Markdown; columns at the indices `left` are text, the others numbers."""
    lines = [head, ["---" if i in left else "---:" for i in range(len(head))], *rows]
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
    ranked, figures = found.examiner.ranked, []
    for one in found.examiner.measures:
        path, teacher = folder / f"{one.key}.png", found.teacher.score[one]
        values = {
            stage: {name: [run.scores[i][one] for run in runs] for name, runs in whole} for i, stage in enumerate(STAGES)
        }
        pictures.dots(path, values, x=one.title, mark=("teacher", teacher), log=not one.share)
        figures.append(Figure(path, _capital(one.title), f"{'more' if one.share else 'less'} is better"))
    points = {name: (runs[0].flops / 1e6, [run.scores[-1][ranked] for run in runs]) for name, runs in whole}
    points["teacher"] = (found.teacher_size[1] / 1e6, [found.teacher.score[ranked]])
    pictures.scatter(folder / "cost.png", points, x="M FLOPs / image", y=f"{ranked.title} after stage 2")
    figures.append(Figure(folder / "cost.png", f"{_capital(ranked.title)} against FLOPs", "after stage 2"))
    page.section("Quality by stage, and what it costs")
    page.figures(figures, least="24rem")


def _samples(page: Report, found: Findings, folder: Path, kept: Path) -> None:
    page.section(
        "The same noise, every model",
        f"After stage 2. {found.examiner.columns} Of several seeds the first is shown, the pictures of the others are "
        "beside this page.",
    )
    common.save_grid(folder / "samples-teacher.png", found.teacher, found.examiner)
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
        *found.examiner.about,
        f"{common.forward_text()} Each variant took turns with the teacher; the factor is the median of neighbouring "
        "passes.",
        f"All numbers, with held-out losses and the seconds of each run, are in {RESULTS} beside this page.",
    )


def _by_variant(found: Findings) -> list[tuple[str, list[Run]]]:
    return [(name, [run for run in found.runs if run.variant == name]) for name in found.config.variants]


def _final(runs: Sequence[Run], measure: Measure) -> float:
    """Mean over the seeds after stage 2."""
    return statistics.fmean(run.scores[-1][measure] for run in runs)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
