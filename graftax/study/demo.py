"""The demo's experiment: a teacher and some grafts of it. Results as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from graftax import api
from graftax.errors import BadInput
from graftax.models import Meta, Model
from graftax.study import stages
from graftax.study.config import DemoConfig
from graftax.study.examiners import Examiner
from graftax.study.experiment import Branch, Experiment, Judged, forward_times
from graftax.surgery import Report
from graftax.surgery.config import GraftConfig

Graft = tuple[Model, Report]


@dataclass(frozen=True)
class Findings:
    """All that the page shows.

    Attributes:
        config: what was asked for.
        examiner: of all models.
        teacher: judged.
        teacher_meta: where it came from.
        teacher_hash: SHA-256 of its weights.
        branches: what became of the grafts, in the config's order.
        forward: median seconds of one pass, by model name.
        seconds: by title.
    """

    config: DemoConfig
    examiner: Examiner
    teacher: Judged
    teacher_meta: Meta
    teacher_hash: str
    branches: tuple[Branch, ...]
    forward: dict[str, float]
    seconds: dict[str, float]


def run(config: DemoConfig, folder: Path) -> Findings:
    """The whole demo; `folder` keeps finished stages, so that running again continues.

    Raises `BadInput` before any model is judged where the config does not fit the teacher.
    """
    experiment = Experiment(config, config.judging, "demo", _checked(config))
    teacher, clock = experiment.teacher, experiment.clock
    grafts = [stages.run_graft(teacher, graft, lambda: experiment.data) for graft in config.grafts]
    names = _names(grafts)
    with clock.titled("teacher"):
        judged = experiment.judge("teacher", teacher, "teacher")
    branches, models = [], {"teacher": teacher}
    for i, (name, graft, made) in enumerate(zip(names, config.grafts, grafts, strict=True)):
        branch, models[name] = _branch(experiment, config, i, graft, name, made, folder)
        branches.append(branch)
    with clock.titled("forward times, interleaved"):
        times = forward_times(models)
    return Findings(
        config, experiment.examiner, judged, teacher.meta, experiment.teacher_hash, tuple(branches),
        {name: timing.median for name, timing in times.items()}, clock.seconds,
    )  # fmt: skip


def _checked(config: DemoConfig) -> dict[str, GraftConfig]:
    """All that is grafted, by the config's names, adapters on top of the operators."""
    own = {"graft": config.graft, **{f"others[{i}]": graft for i, graft in enumerate(config.others)}}
    if config.adaptation is None:
        return own
    adapters = config.adaptation.edits
    carriers = {name: dataclasses.replace(graft, edits=graft.edits + adapters) for name, graft in own.items()}
    return own | {f"adaptation of {name}": graft for name, graft in carriers.items()}


def _names(grafts: Sequence[Graft]) -> list[str]:
    """What the grafts are called: by their share of the blocks, and where that is not enough by their operators."""
    names = [f"{_share(report)} grafted" for _, report in grafts]
    if len(_kinds(grafts)) > 1:
        names = [f"{_kind(report)}, {_share(report)}" for _, report in grafts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"demo: {len(twice)} grafts are {twice[0]!r}, expected other operators, or another number of them")
    return names


def _kinds(grafts: Sequence[Graft]) -> set[str]:
    return {_kind(report) for _, report in grafts}


def _kind(report: Report) -> str:
    return report.sites[0].held(report.after).kind


def _share(report: Report) -> str:
    return f"{len(report.sites) / report.after.depth:.0%}".replace("%", " %")


def _branch(
    experiment: Experiment, config: DemoConfig, number: int, graft: GraftConfig, name: str, made: Graft, folder: Path
) -> tuple[Branch, Model]:
    student, report = made
    adaptation = config.adaptation
    if adaptation and adaptation.grafts is not None and number >= adaptation.grafts:
        adaptation = None
    extra = [adaptation] if adaptation else []
    work = folder / "work" / experiment.identity(graft, config.distill, config.finetune, *extra)
    branch, model, adapted = experiment.branch(
        name, student, report, work, config.distill, config.finetune, adaptation=adaptation
    )
    saved = folder / f"{_kind(report)}-{len(report.sites)}-of-{report.after.depth}"
    api.save(model, saved)
    if adapted is not None:
        api.save(adapted, saved.with_name(f"{saved.name}-adapters"))
    return branch, model
