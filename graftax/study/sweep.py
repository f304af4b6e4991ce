"""The sweep: every variant through both stages, one record each, kept as soon as it is complete."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from graftax.checkpoint.files import replacing
from graftax.distill.stage import DistillStage
from graftax.errors import BadInput, NonFinite
from graftax.evaluate import pictures
from graftax.evaluate.score import Score
from graftax.models.cost import count_params, flops
from graftax.progress import say
from graftax.study import stages
from graftax.study.config import SweepConfig, Variant
from graftax.study.examiners import Examiner
from graftax.study.experiment import Branch, Experiment, Judged, forward_times
from graftax.surgery.config import GraftConfig
from graftax.train import DiffusionConfig

RESULTS = "results.json"


@dataclass(frozen=True)
class Plan:
    """One run to do.

    Attributes:
        variant: its name.
        seed: of this run.
        graft: the edits.
        distill: stage 1.
        finetune: stage 2.
        subsets: the parts of the data that the stages see.
        identity: twelve hex digits that change with any of these.
    """

    variant: str
    seed: int
    graft: GraftConfig
    distill: DistillStage
    finetune: DiffusionConfig
    subsets: tuple[str | None, str | None]
    identity: str

    def __str__(self) -> str:
        return self.variant if self.seed == 0 else f"{self.variant}, seed {self.seed}"

    @property
    def picture(self) -> str:
        """File name of the grid of final samples."""
        return picture_name(self.variant, self.identity)


@dataclass(frozen=True)
class Run:
    """What became of a plan. JSON types and `Score`s.

    Attributes:
        variant: name of the plan's variant.
        seed: the plan's.
        identity: the plan's.
        parameters: of the student.
        flops: of the student, per image and pass.
        forward: seconds of one pass.
        slowdown: relative to the teacher, from passes that took turns with it.
        seconds: the whole run took.
        error: mean relative error of the scions on held-out data after stage 1, None where there was no such measurement.
        scores: without training, after stage 1, after stage 2.
        losses: likewise, on held-out data.
        failure: why a run became non-finite, which then has neither error nor scores.
    """

    variant: str
    seed: int
    identity: str
    parameters: int
    flops: int
    forward: float
    slowdown: float
    seconds: float
    error: float | None = None
    scores: tuple[Score, ...] = ()
    losses: tuple[float, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class Findings:
    """All that the page shows.

    Attributes:
        config: what was asked for.
        teacher: judged.
        teacher_size: its parameters and FLOPs.
        plans: all of them, in the order of the config's variants.
        runs: likewise.
        examiner: of all models.
    """

    config: SweepConfig
    teacher: Judged
    teacher_size: tuple[int, int]  # parameters, FLOPs
    plans: tuple[Plan, ...]
    runs: tuple[Run, ...]
    examiner: Examiner

    @property
    def failed(self) -> tuple[Run, ...]:
        """Runs that became non-finite."""
        return tuple(run for run in self.runs if run.failure)


def run(config: SweepConfig, folder: Path) -> Findings:
    """Do all runs that `folder` has no record of yet, in order; the record is rewritten after each.

    An interrupted run continues from its own checkpoints. Raises `BadInput` before any device work where a variant does
    not fit the teacher, and on records that cannot be read.
    """
    experiment = Experiment(config, config.judging, "sweep", dict(config.variants))
    folder.mkdir(parents=True, exist_ok=True)
    done = read_runs(folder / RESULTS)
    plans = _plans(experiment, config)
    with experiment.clock.titled("teacher"):
        teacher = experiment.judge("teacher", experiment.teacher, "teacher")
    left = [plan for plan in plans if not _is_done(plan, done, folder)]
    say(f"{len(plans)} runs, {len(plans) - len(left)} of them done already")
    start = time.perf_counter()
    for i, plan in enumerate(left):
        announce(plan, i, len(left), time.perf_counter() - start)
        done[plan.identity] = _run(experiment, plan, folder)
        runs = [done[p.identity] for p in plans if p.identity in done]
        _write(folder / RESULTS, experiment, teacher, runs)
        jax.clear_caches()  # each variant compiles its own programs, which nobody needs again
    runs = tuple(done[plan.identity] for plan in plans)
    _write(folder / RESULTS, experiment, teacher, runs)
    spec = experiment.teacher.spec
    return Findings(config, teacher, (count_params(spec), flops(spec)), plans, runs, experiment.examiner)


def _plans(experiment: Experiment, config: SweepConfig) -> tuple[Plan, ...]:
    return tuple(
        _plan(experiment, name, variant, seed) for name, variant in config.variants.items() for seed in config.seeds
    )


def _plan(experiment: Experiment, name: str, variant: Variant, seed: int) -> Plan:
    config = experiment.config
    fields = {field.name: getattr(variant, field.name) for field in dataclasses.fields(GraftConfig)}
    graft = GraftConfig(**{**fields, "seed": variant.seed + seed})
    distill, finetune = variant.distill or config.distill, variant.finetune or config.finetune
    distill = dataclasses.replace(distill, seed=distill.seed + seed)
    finetune = dataclasses.replace(finetune, loop=dataclasses.replace(finetune.loop, seed=finetune.loop.seed + seed))
    subsets = variant.distill_subset, variant.finetune_subset
    identity = experiment.identity(
        name, seed, graft, distill, finetune, experiment.judging, *([subsets] if any(subsets) else [])
    )
    return Plan(name, seed, graft, distill, finetune, subsets, identity)


def _is_done(plan: Plan, done: dict[str, Run], folder: Path) -> bool:
    run = done.get(plan.identity)
    return run is not None and (bool(run.failure) or (folder / plan.picture).exists())


def picture_name(variant: str, identity: str) -> str:
    """File name of the grid of a run's samples."""
    return f"samples-{re.sub(r'[^a-z0-9]+', '-', variant.lower()).strip('-')}-{identity}.png"


def announce(plan: object, index: int, count: int, elapsed: float) -> None:
    """Say which of `count` runs begins, and how long all that are left take at the rate so far."""
    left = f", about {(count - index) * elapsed / index / 60:.0f} min left" if index else ""
    say(f"--- {plan}: run {index + 1} of {count}{left}")


def _run(experiment: Experiment, plan: Plan, folder: Path) -> Run:
    """One plan from the graft to its last score; numbers that are not finite are an outcome as well."""
    work, start = folder / "work" / plan.identity, time.perf_counter()
    student, report = stages.run_graft(experiment.teacher, plan.graft, lambda: experiment.data)
    times = forward_times({"teacher": experiment.teacher, "student": student})
    forward, slowdown = times["student"].median, times["student"].over(times["teacher"])
    outcome: dict[str, Any]
    try:
        branch, *_ = experiment.branch(str(plan), student, report, work, plan.distill, plan.finetune, plan.subsets)
    except NonFinite as error:
        say(f"    {plan}: failed: {error}")
        outcome = {"failure": " ".join(str(error).split())}
    else:
        outcome = _outcome(branch)
        pictures.save_png(folder / plan.picture, experiment.examiner.grid(branch.judged[-1].samples))
    shutil.rmtree(work, ignore_errors=True)  # checkpoints of a run that is over
    seconds = round(time.perf_counter() - start, 1)
    size = count_params(student.spec), flops(student.spec)
    return Run(plan.variant, plan.seed, plan.identity, *size, forward, slowdown, seconds, **outcome)


def _outcome(branch: Branch) -> dict[str, Any]:
    return {
        "error": stages.last_eval(branch.distilled).get("error"),
        "scores": tuple(judged.score for judged in branch.judged),
        "losses": tuple(judged.loss for judged in branch.judged),
    }


def _write(path: Path, experiment: Experiment, teacher: Judged, runs: Sequence[Run]) -> None:
    record = {
        "teacher": {**teacher.score.record(), "heldout_loss": teacher.loss, "sha256": experiment.teacher_hash},
        "real_heldout": experiment.examiner.real.record(),
        "runs": [{**dataclasses.asdict(run), "scores": [one.record() for one in run.scores]} for run in runs],
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def read_runs(path: Path) -> dict[str, Run]:
    """The runs of a record by their identity, {} where there is no file. Raises `BadInput` on anything else."""
    if not path.exists():
        return {}
    try:
        lines = json.loads(path.read_text())["runs"]
        runs = [
            Run(**{**line, "scores": tuple(map(Score.of_record, line["scores"])), "losses": tuple(line["losses"])})
            for line in lines
        ]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: {error!r}, expected the record of a sweep; remove it to start over") from None
    return {run.identity: run for run in runs}
