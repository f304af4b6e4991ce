"""The demo's experiment: a teacher and two grafts of it. Results as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from graftax import api
from graftax.errors import BadInput
from graftax.evaluate.drawing import Score
from graftax.models import Meta, Model
from graftax.study import stages
from graftax.study.config import DemoConfig
from graftax.study.experiment import Branch, Experiment, Judged, forward_times
from graftax.surgery import Report
from graftax.surgery.config import GraftConfig


@dataclass(frozen=True)
class Findings:
    """All that the page shows.

    Attributes:
        config: what was asked for.
        teacher: judged.
        teacher_meta: where it came from.
        teacher_hash: SHA-256 of its weights.
        half: the first graft.
        all: the second.
        real: score of held-out real images.
        forward: median seconds of one pass, by model name.
        real_counts: how many real images are the reference, and how many were held out.
        features: the width of the judge's features.
        class_names: of the data.
        seconds: by title.
    """

    config: DemoConfig
    teacher: Judged
    teacher_meta: Meta
    teacher_hash: str
    half: Branch
    all: Branch
    real: Score
    forward: dict[str, float]
    real_counts: tuple[int, int]
    features: int
    class_names: tuple[str, ...]
    seconds: dict[str, float]


def run(config: DemoConfig, folder: Path) -> Findings:
    """The whole demo; `folder` keeps finished stages, so that running again continues.

    Raises `BadInput` before any device work where the config does not fit the teacher.
    """
    experiment = Experiment(config, config.judging, "demo", {"graft": config.graft, "graft_all": config.graft_all})
    teacher, data, clock = experiment.teacher, experiment.data, experiment.clock
    with clock.titled("teacher"):
        judged = experiment.judge("teacher", teacher, "teacher")
    grafts = [stages.run_graft(teacher, graft, lambda: data) for graft in (config.graft, config.graft_all)]
    if len({len(report.sites) for _, report in grafts}) < 2:
        raise BadInput("demo: graft and graft_all exchange equally many operators, expected different numbers")
    half, half_model = _branch(experiment, config, config.graft, *grafts[0], folder)
    every, every_model = _branch(experiment, config, config.graft_all, *grafts[1], folder)
    with clock.titled("forward times, interleaved"):
        times = forward_times({"teacher": teacher, half.name: half_model, every.name: every_model})
    return Findings(
        config, judged, teacher.meta, experiment.teacher_hash, half, every, experiment.real,
        {name: timing.median for name, timing in times.items()}, (len(data.raw_train), len(data.raw_test)),
        experiment.features, data.raw_train.class_names, clock.seconds,
    )  # fmt: skip


def _branch(
    experiment: Experiment, config: DemoConfig, graft: GraftConfig, student: Model, report: Report, folder: Path
) -> tuple[Branch, Model]:
    depth, sites = experiment.teacher.spec.depth, len(report.sites)
    name = f"{sites / depth:.0%}".replace("%", " %") + " grafted"
    work = folder / "work" / experiment.identity(graft, config.distill, config.finetune)
    branch, model = experiment.branch(name, student, report, work, config.distill, config.finetune)
    api.save(model, folder / f"{sites}-of-{depth}")
    return branch, model
