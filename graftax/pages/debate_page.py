"""What a debate found: each claim with what was measured and its verdict, and all models in one table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from graftax.checkpoint.files import filling
from graftax.evaluate import pictures
from graftax.evaluate.report import Figure, Report
from graftax.evaluate.score import Measure
from graftax.pages import common
from graftax.pages.sweep_page import Table, markdown
from graftax.study.debate import RESULTS, Debated, Run
from graftax.study.debate_config import Disputed
from graftax.study.verdicts import ENOUGH, HOLDS, OPEN, OPPOSITE, gap

LOSS = Measure("loss", "held-out loss", "held-out loss", share=False)


@dataclass(frozen=True)
class Ruling:
    """A claim and what was found of it.

    Attributes:
        claim: what was said.
        verdict: `HOLDS`, `OPPOSITE` or `OPEN`.
        measured: means and deviations of both, by every measure that compares them.
        sentence: the verdict and the numbers that it rests on.
    """

    claim: Disputed
    verdict: str
    measured: str
    sentence: str


def rulings(found: Debated) -> list[Ruling]:
    """All claims, as the measure that ranks models decides."""
    return [_ruling(found, claim) for claim in found.config.claims]


def _ruling(found: Debated, claim: Disputed) -> Ruling:
    sides = [found.of(claim.better), found.of(claim.than)]
    if failed := [run for runs in sides for run in runs if run.failure]:
        return Ruling(claim, OPEN, "", f"{_capital(OPEN)}: {failed[0].entrant}, seed {failed[0].seed}, {failed[0].failure}.")
    ranked = found.examiner.ranked
    apart = gap(_values(sides[0], ranked), _values(sides[1], ranked), ranked)
    measures = [*found.examiner.measures, *([LOSS] if sides[0][0].predicts == sides[1][0].predicts else [])]
    measured = "; ".join(f"{one.title} {_versus(sides, one)}" for one in measures)
    words = {
        HOLDS: f"Holds: {claim.better} draws better than {claim.than}",
        OPPOSITE: f"The opposite holds: {claim.better} draws worse than {claim.than}",
        OPEN: f"{_capital(OPEN)}: {claim.better} beside {claim.than}",
    }
    sentence = f"{words[apart.verdict]}, {ranked.title} {_versus(sides, ranked)} ({apart.errors})."
    return Ruling(claim, apart.verdict, measured, sentence)


def verdict(found: Debated) -> list[str]:
    """A line for each claim."""
    return [f"({one.claim.question}) {one.claim.text} {one.sentence}" for one in rulings(found)]


def _claims_table(found: Debated) -> Table:
    head = ["claim", "who said it", "measured", "verdict"]
    return head, [
        [f"({one.claim.question}) {one.claim.text}", one.claim.by, one.measured, one.sentence] for one in rulings(found)
    ]


def table(found: Debated) -> Table:
    """Head and rows as text, an entrant each; over several seeds mean ± standard deviation."""
    measures = found.examiner.measures
    head = ["", "parameters", "FLOPs / image, step", "steps", "seconds", *(one.short for one in measures), "held-out loss"]
    rows = []
    for name, runs in _by_entrant(found):
        first, seconds = runs[0], statistics.fmean(run.seconds for run in runs)
        row = [name, f"{first.parameters / 1e6:.2f} M", f"{first.work / 1e6:.1f} M", f"{first.steps:,}", f"{seconds:.0f}"]
        whole = [run for run in runs if not run.failure]
        if len(whole) < len(runs):
            rows.append([*row, "failed", *[""] * len(measures)])
            continue
        scores = [_spread(_values(runs, one), one.text) for one in measures]
        rows.append([*row, *scores, f"{_spread(_values(runs, LOSS), LOSS.text)} ({first.predicts})"])
    return head, rows


def write(found: Debated, folder: Path) -> Path:
    """Write table.md, pictures and report.html into `folder`; returns the page's path."""
    with filling(folder) as fresh:
        text = f"{markdown(*_claims_table(found), left=range(4))}\n{markdown(*table(found))}"
        (fresh / "table.md").write_text(text, encoding="utf-8")
        _page(found, fresh, folder).write(fresh / "report.html", common.footer())
    return folder / "report.html"


def _page(found: Debated, folder: Path, kept: Path) -> Report:
    page = Report(
        "The debate, tested",
        f"What has been said of diffusion transformers, asked of small ones: each is {_begun(found)} on as many FLOPs as "
        "the first, with several seeds, and judged alike.",
    )
    page.verdict(*verdict(found))
    for question, group in groupby(rulings(found), key=lambda one: one.claim.question):
        page.section(f"({question})")
        for one in group:
            page.paragraphs(
                f"Claim: {one.claim.text} {one.claim.note}".strip(), f"Said by: {one.claim.by}.",
                f"Measured: {one.measured}." if one.measured else "Measured: nothing.", one.sentence,
            )  # fmt: skip
    page.section("In numbers")
    page.table(*table(found))
    _charts(page, found, folder)
    _samples(page, found, kept)
    _protocol(page, found)
    return page


def _charts(page: Report, found: Debated, folder: Path) -> None:
    whole = {name: runs for name, runs in _by_entrant(found) if not any(run.failure for run in runs)}
    if not whole:
        return
    figures = []
    for one in found.examiner.measures:
        values = {name: _values(runs, one) for name, runs in whole.items()}
        first, path = next(iter(values)), folder / f"{one.key}.png"
        mark = first, statistics.fmean(values[first])
        pictures.dots(path, {"at equal FLOPs": values}, x=one.title, mark=mark, log=not one.share)
        figures.append(Figure(path, _capital(one.title), f"{'more' if one.share else 'less'} is better"))
    page.figures(figures, least="24rem")


def _samples(page: Report, found: Debated, kept: Path) -> None:
    page.section("The same noise, every model", f"{found.examiner.columns} Of several seeds the first is shown.")
    page.figures([
        Figure(kept / plan.picture, plan.entrant)
        for plan, run in zip(found.plans, found.runs, strict=True)
        if not run.failure and plan.seed == found.config.seeds[0]
    ], least="20rem")  # fmt: skip


def _protocol(page: Report, found: Debated) -> None:
    config = found.config
    page.section(
        "How this was measured",
        f"Budget: {found.runs[0].steps:,} steps of {config.training.batch_size} images of {found.runs[0].entrant}, and for "
        "every other model as many steps as cost the same FLOPs: three passes per step under what is left out, the heads of "
        f"losses, the averaged model where a loss looks at it. {len(config.seeds)} seeds, which draw new weights and all "
        "that training draws; every schedule ends with its model's own steps.",
        f"A claim holds, or its opposite, where the means of the {found.examiner.ranked.title} differ by more than "
        f"{ENOUGH:g} standard errors of their difference, from the variance pooled over both models' seeds; else it is not "
        "decidable at this size. Of models that are equal, three seeds each, about one pair in nine is called different so; "
        "claims are judged one by one, without a correction for their number.",
        *found.examiner.about,
        f"Flows are drawn by {config.sample(flow=True)}. Held-out losses are errors of what stands beside them, at evenly "
        "drawn times whatever those of training.",
        f"All numbers are in {RESULTS} beside this page.",
    )


def _begun(found: Debated) -> str:
    teacher = found.config.teacher
    return f"an edit of the model {teacher!r}, trained on" if teacher else "trained from scratch"


def _by_entrant(found: Debated) -> Iterator[tuple[str, list[Run]]]:
    return ((name, found.of(name)) for name in found.config.entrants)


def _values(runs: Sequence[Run], measure: Measure) -> list[float]:
    """Of runs that have not failed."""
    if measure is LOSS:
        return [run.loss for run in runs if run.loss is not None]
    return [run.score[measure] for run in runs if run.score is not None]


def _versus(sides: Sequence[Sequence[Run]], measure: Measure) -> str:
    first, second = (_spread(_values(runs, measure), measure.text) for runs in sides)
    return f"{first} against {second}"


def _spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    mean = show(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {show(statistics.stdev(values))}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
