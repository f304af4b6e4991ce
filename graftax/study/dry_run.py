"""What a training would be, without training: data, mesh, memory, parameters, and the first step traced from shapes alone.

Nothing is put on a device and nothing is written. The steps are those that the trainings run
(`graftax.evaluate.aot.programs`), so what they refuse, they refuse here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax

from graftax.data.features import NAME as FEATURES
from graftax.data.pixels.images import Images
from graftax.distill.sites import check_pair
from graftax.distill.stage import DistillStage
from graftax.distill.stage1 import table_of
from graftax.distill.steps import regression_units, taken_out
from graftax.errors import BadInput
from graftax.evaluate.aot import stage1_program, train_program
from graftax.evaluate.roofline import roofline
from graftax.models import Model
from graftax.models.stack import chosen_remat
from graftax.spec import ModelSpec
from graftax.train import DiffusionConfig, MeshConfig
from graftax.train.finetune import table_of_finetuning, table_of_training
from graftax.train.loop import Batch, Job
from graftax.train.overview import parameter_table
from graftax.train.recipes import Recipe
from graftax.train.sharding_report import sharding_report, size_text
from graftax.train.step import TrainStep


@dataclass(frozen=True)
class DryRun:
    """What a training would be; `str` is a page of text.

    Attributes:
        title: what it is called.
        steps: its length.
        data: what it learns from.
        mesh: where it runs.
        parameters: a table of all of them, with what becomes of each.
        memory: bytes by what they hold, in words.
        batch: shapes of one.
        metrics: shapes of what the first step reports.
    """

    title: str
    steps: int
    data: str
    mesh: str
    parameters: str
    memory: dict[str, str]
    batch: dict[str, str]
    metrics: dict[str, str]

    def __str__(self) -> str:
        lines = {
            self.title: f"{self.steps:,} steps", "data": self.data, "mesh": self.mesh, "a batch": _listed(self.batch),
            "a step gives": _listed(self.metrics), **self.memory,
        }  # fmt: skip
        width = max(map(len, lines)) + 2
        told = "\n".join(f"{name:<{width}}{text}" for name, text in lines.items())
        return f"{self.parameters}\n\n{told}\nDry run: nothing was trained, nothing written."


def dry_distill(teacher: Model, student: Model, stage: DistillStage, data: Images, mesh: MeshConfig) -> DryRun:
    """Stage 1 of `student` as `graftax.distill.distill` would run it. Raises `BadInput` as it does."""
    units = regression_units(student, None)
    check_pair(teacher, student, taken_out(units))
    program = stage1_program(teacher.spec, student.spec, units, stage.settings, stage.batch_size)
    traced = program.trace(mesh.build(), mesh.rules)
    (state, prepared, batch, _), _ = traced.in_avals
    memory = {"scions": _bytes(state, mesh), "teacher": _bytes(prepared, mesh)}
    return _found("stage 1", stage.settings.steps, data, mesh, table_of(student), memory, batch, traced.out_info[1])


def dry_finetune(student: Model, stage: DiffusionConfig, data: Images, mesh: MeshConfig) -> DryRun:
    """Stage 2 of `student` as `graftax.train.finetune` would run it. Raises `BadInput` as it does."""
    return _diffusion("stage 2", student.spec, table_of_finetuning(student, stage), stage, data, mesh)


def dry_train(spec: ModelSpec, stage: DiffusionConfig, data: Images, mesh: MeshConfig) -> DryRun:
    """The training of a model from scratch as `graftax.train.train` would run it. Raises `BadInput` as it does."""
    return _diffusion("training", spec, table_of_training(spec, stage), stage, data, mesh)


def dry_job(job: Job[Any], steps: int, batch: Batch, data: Images, mesh: MeshConfig, frozen: Iterable[str]) -> DryRun:
    """Any training with a state as `graftax.train.train_job` has it; `batch`: shapes of what a step sees."""
    state = jax.eval_shape(job.init)
    step = cast(TrainStep, job.step)
    _, metrics = step.trace(state, batch, jax.eval_shape(lambda: jax.random.key(0))).out_info
    table = parameter_table({**state.trainable, **state.frozen}, None, tuple(frozen))
    return _found(job.label, steps, data, mesh, table, {"state": _bytes(state, mesh)}, batch, metrics)


def saved_steps(folder: Path) -> str:
    """Whether a run's folder holds checkpoints to continue from, in words."""
    steps = [int(path.name) for path in (folder / "checkpoints").glob("[0-9]*") if path.name.isdecimal()]
    return f"{folder}: continues after step {max(steps)}" if steps else f"{folder}: begins"


def _diffusion(
    title: str, spec: ModelSpec, table: str, stage: DiffusionConfig, data: Images, mesh: MeshConfig
) -> DryRun:  # fmt: skip
    for name, one in Recipe.parse(stage.recipe).arrays(spec).items():
        if name not in data.besides:
            wanted = f"recipe {stage.recipe!r}: takes {name!r} {one.shape} of the data"
            raise BadInput(f"{wanted}, expected {FEATURES!r}, and their folder as data.features, or 'against' of scenes")
    traced = train_program(title, spec, stage).trace(mesh.build(), mesh.rules)
    (moving, frozen, batch, _), _ = traced.in_avals
    memory = {"state": f"{_bytes((moving, frozen), mesh)}: weights, averages, moments"}
    if chosen_remat(stage.remat) == "none":
        pieces = stage.accumulate * math.prod(mesh.shape(jax.device_count())[:2])
        kept = roofline(spec, max(1, stage.batch_size // pieces), stage.compute_dtype)[-1].saved_bytes
        memory["activations"] = f"{size_text(kept)} on each device, kept for the backward pass (less with remat)"
    return _found(title, stage.loop.steps, data, mesh, table, memory, batch, traced.out_info[1])


def _found(
    title: str, steps: int, data: Images, mesh: MeshConfig, table: str, memory: dict[str, str], batch: Any, metrics: Any
) -> DryRun:
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.build().shape.items())
    return DryRun(
        title, steps, _data(data), f"{axes} ({jax.devices()[0].device_kind})", table, memory,
        *({name: f"{leaf.dtype}{leaf.shape}" for name, leaf in tree.items()} for tree in (batch, metrics)),
    )  # fmt: skip


def _data(data: Images) -> str:
    held = f"{len(data.raw_test):,} held out" if data.held_out else "none held out"
    seen = "x".join(map(str, data.shape))
    return f"{data.config.source}: {len(data.raw_train):,} images, {held}, seen as {seen}, {data.num_classes} classes"


def _bytes(tree: Any, mesh: MeshConfig) -> str:
    return str(sharding_report(tree, mesh.build(), mesh.rules)).splitlines()[0]


def _listed(shapes: dict[str, str]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())
