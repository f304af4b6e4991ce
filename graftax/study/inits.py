"""The comparison behind `graftax inits`: each start goes through the same stage 1, judged before and after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from graftax.checkpoint.files import replacing
from graftax.distill import calibrate, distill_job
from graftax.errors import BadInput
from graftax.evaluate.score import Measure
from graftax.models import Model
from graftax.progress import say
from graftax.study import stages
from graftax.study.config import InitsConfig, Start
from graftax.study.experiment import Experiment, Judged

Row = dict[str, Any]
RESULTS = "results.json"
POINTS = (0, 100)
"""Steps of stage 1 whose errors the table shows, besides the last."""


def run(config: InitsConfig, folder: Path) -> list[Row]:
    """One row per start, in order, JSON types; `folder` keeps them, the record is rewritten after each.

    Raises `BadInput` before any device work where a start does not fit the teacher, and on records that cannot be read.
    """
    experiment = Experiment(config, config.judging, "comparison", dict(config.starts))
    folder.mkdir(parents=True, exist_ok=True)
    done = _read(folder / RESULTS)
    starts = {
        experiment.identity(name, start, config.distill, config.judging): name for name, start in config.starts.items()
    }
    for identity, name in starts.items():
        if identity not in done:
            say(f"--- {name}")
            done[identity] = {"start": name, "identity": identity, **_measure(experiment, name, config.starts[name])}
            jax.clear_caches()  # each start compiles its own programs, which nobody needs again
        with replacing(folder / RESULTS) as temporary:
            rows = [done[one] for one in starts if one in done]
            temporary.write_text(json.dumps({"teacher_sha256": experiment.teacher_hash, "rows": rows}, indent=1) + "\n")
    return [done[identity] for identity in starts]


def table(rows: list[Row], measures: Sequence[Measure]) -> str:
    """Rows of equally long training as a Markdown table, `measures` of their scores before and after."""
    last = max(map(int, rows[0]["errors"]))
    points = [step for step in (*POINTS, last) if str(step) in rows[0]["errors"]]
    lines = [["scions", *(f"error at step {step}" for step in points)]]
    lines[0] += [f"{', '.join(one.short for one in measures)} at step {step}" for step in (0, last)]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        errors = [f"{row['errors'][str(step)]:.3f}" for step in points]
        quality = [", ".join(one.text(row[when][one.key]) for one in measures) for when in ("before", "after")]
        lines.append([row["start"], *errors, *quality])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _measure(experiment: Experiment, name: str, start: Start) -> Row:
    """Mean relative errors on held-out data by step, and what the judge says before and after all steps."""
    data, stage, mesh = experiment.data, experiment.config.distill, experiment.config.mesh
    student = _begin(experiment, start)
    heldout = stages.heldout_of(data)
    job = distill_job(experiment.teacher, student, stage.settings, heldout=heldout, mesh=mesh.build())
    assert job.evaluate is not None
    errors = {0: job.evaluate(job.init())["error"]}
    before = experiment.judge(name, student, "before stage 1")
    student, history = stages.run_distill(experiment.teacher, student, stage, data, None, mesh)
    errors |= {line["step"]: line["error"] for line in history if line["split"] == "eval"}
    after = experiment.judge(name, student, "after stage 1")
    return {"errors": {str(k): float(v) for k, v in errors.items()}, "before": _numbers(before), "after": _numbers(after)}


def _begin(experiment: Experiment, start: Start) -> Model:
    """The student at step 0."""
    data, stage = experiment.data, experiment.config.distill
    student, _ = stages.run_graft(experiment.teacher, start, lambda: data)
    if not start.least_squares:
        return student
    batches, mesh = data.batches(stage.batch_size, stage.seed), experiment.config.mesh.build()
    return calibrate(experiment.teacher, student, batches, start.least_squares, stage.settings, mesh=mesh)


def _numbers(judged: Judged) -> dict[str, Any]:
    return {**judged.score.record(), "loss": judged.loss}


def _read(path: Path) -> dict[str, Row]:
    if not path.exists():
        return {}
    try:
        return {row["identity"]: row for row in json.loads(path.read_text())["rows"]}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: {error!r}, expected the record of a comparison; remove it to start over") from None
