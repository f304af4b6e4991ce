"""What `graftax bench --aot` does: every step of a config compiled for a TPU slice, each in a process of its own.

libtpu wants its environment set before jax starts, and what its compiler has to say goes to the process's stderr: the
children give both. `python -m graftax.cli.experiments.aot TOPOLOGY STEP CONFIG [KEY=VALUE ...]` is such a child.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graftax.cli import config as configs
from graftax.errors import BadInput, GraftaxError
from graftax.evaluate.aot import REMATERIALISATION, Program, Topology, check, measure, parse_topology, require_libtpu
from graftax.evaluate.aot.programs import sample_program, stage1_program, train_program
from graftax.evaluate.aot.topology import ENVIRONMENT
from graftax.progress import Progress
from graftax.spec import ModelSpec
from graftax.train import MeshConfig

TAIL = 30  # lines of a failed child's stderr that are shown


def compile_steps(topology: str, path: str, overrides: Sequence[str], only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """`graftax.evaluate.aot.measure` of the steps of the config at `path`, or of those in `only`, with `warnings`, the
    compiler's complaints of involuntary rematerialisation. Raises `BadInput` as it does, and where the config does not fit.
    """
    slice_, (programs, mesh) = parse_topology(topology), programs_of(configs.read(path, overrides))
    by_name = {program.name: program for program in programs}
    if unknown := [name for name in only if name not in by_name]:
        raise BadInput(f"step {unknown[0]!r}: expected some of {', '.join(by_name)}")
    wanted = only or list(by_name)
    for name in wanted:
        check(by_name[name], slice_, mesh)
    require_libtpu()
    rows = []
    with Progress(len(wanted), f"compile for {slice_}", unit="step") as progress:
        for name in wanted:
            rows.append(_in_child(slice_, name, path, overrides))
            progress.advance()
    return rows


def programs_of(tree: dict[str, Any]) -> tuple[list[Program], MeshConfig]:
    """The steps that a config's fields describe, and its mesh: a `Recipe`'s stage 1, stage 2 and sampling; of a DiT from
    scratch, training and sampling. What a `Recipe` does not say of sampling is the grafting paper's: DDPM, 250 steps,
    guidance 1.5, in batches of stage 2. Raises `BadInput` on other configs.
    """
    from graftax.cli.schema import DemoConfig, DiTTraining, Recipe

    if tree.get("task") == "dit":
        training = configs.build(DiTTraining, tree)
        spec = training.model.spec()
        return [_training("train", spec, training), _sampling(spec, training, None)], training.mesh
    if "graft" not in tree:
        raise BadInput("config: expected one experiment, with graft, distill and finetune, or a training of task 'dit'")
    recipe = configs.build(DemoConfig if "graft_all" in tree else Recipe, tree)
    teacher, student, units = graft_of(recipe)
    distill = recipe.distill
    return [
        stage1_program(teacher, student, units, distill.settings, distill.batch_size),
        _training("stage 2", student, recipe.finetune),
        _sampling(student, recipe.finetune, getattr(recipe, "sample", None)),
    ], recipe.mesh


def graft_of(recipe: Any) -> tuple[ModelSpec, ModelSpec, Any]:
    """Specs of a `Recipe`'s teacher and student, and what its stage 1 trains (`regression_units`), all without weights."""
    from graftax.cli.experiments import stages
    from graftax.distill.steps import regression_units
    from graftax.models import Meta, Model

    teacher = teacher_spec(recipe.teacher)
    student, report = stages.dry_run(recipe.graft, teacher)
    return teacher, student, regression_units(Model(student, {}, Meta(sites=tuple(map(str, report.sites)))), None)


def teacher_spec(name: str) -> ModelSpec:
    """What a config's teacher is: read from its file where there is one, else known by its published name.

    Raises `BadInput` on other names, and as `stages.read_model` does.
    """
    from graftax.checkpoint.zoo import spec_of
    from graftax.cli.experiments import stages

    if name == "demo" or Path(name).exists():
        return stages.read_model(name).spec
    spec = spec_of(Path(name).stem) or spec_of(name)
    if spec is None:
        raise BadInput(f"teacher {name!r}: no such file or folder, and no published model of that name")
    return spec


def _training(name: str, spec: ModelSpec, stage: Any) -> Program:
    return train_program(
        name, spec, stage.optimiser, stage.batch_size, ema_decay=stage.ema_decay, frozen=stage.frozen,
        class_dropout=stage.class_dropout, dtype=stage.compute_dtype, plan=stage.plan, remat=stage.remat,
        accumulate=stage.accumulate,
    )  # fmt: skip


def _sampling(spec: ModelSpec, stage: Any, sample: Any) -> Program:
    if sample is None:
        return sample_program(spec, stage.batch_size, dtype=stage.compute_dtype)
    return sample_program(
        spec, sample.batch_size, sampler=sample.sampler, steps=sample.steps, cfg_scale=sample.cfg_scale,
        cfg_channels=sample.cfg_channels, eta=sample.eta, dtype=stage.compute_dtype,
    )  # fmt: skip


# --- Children ----------------------------------------------------------------------------------------------------------


def _in_child(topology: Topology, name: str, path: str, overrides: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "graftax.cli.experiments.aot", str(topology), name, path, *overrides]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False)
    if done.returncode == BadInput.exit_code:
        raise BadInput(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-TAIL:])
        raise RuntimeError(f"compiling {name} for {topology} ended with {done.returncode}:\n{tail}")
    warnings = [line for line in done.stderr.splitlines() if REMATERIALISATION in line]
    return {**json.loads(done.stdout.splitlines()[-1]), "warnings": warnings}


def main(argv: Sequence[str]) -> int:
    """A child: compile one step, print its numbers as JSON."""
    topology, name, path, *overrides = argv
    try:
        programs, mesh = programs_of(configs.read(path, overrides))
        program = next(program for program in programs if program.name == name)
        print(json.dumps(measure(program, parse_topology(topology), mesh)))
        return 0
    except GraftaxError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
