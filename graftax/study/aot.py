"""What `graftax bench --aot` does: every step of a config compiled for a TPU slice, each in a process of its own.

libtpu wants its environment set before jax starts, and what its compiler has to say goes to the process's stderr: the
children give both. `python -m graftax.study.aot TOPOLOGY STEP CONFIG [KEY=VALUE ...]` is such a child.
"""

from __future__ import annotations

import json
import operator
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from graftax import api
from graftax import config as configs
from graftax.backbones.zoo import spec_of
from graftax.checkpoint.hub import is_hub
from graftax.checkpoint.shipped import is_shipped
from graftax.distill.steps import StepSite, regression_units
from graftax.errors import BadInput, GraftaxError, did_you_mean
from graftax.evaluate.aot import (
    REMATERIALISATION,
    Program,
    Topology,
    check,
    measure,
    parse_topology,
    require_libtpu,
    sample_program,
    stage1_program,
    train_program,
)
from graftax.evaluate.aot.topology import ENVIRONMENT
from graftax.models import Meta, Model, param_shapes
from graftax.platforms import COMPILED, LEAST_SECONDS
from graftax.progress import Progress
from graftax.spec import ModelSpec
from graftax.study import drawing
from graftax.study.config import RECIPES, DemoConfig, Recipe, experiment_of
from graftax.study.pretrain import MODELS, TASKS, pretraining_of
from graftax.study.stages import has_stage_1
from graftax.surgery import Edit, Site
from graftax.surgery.edits import Compose
from graftax.surgery.replace import Exchange
from graftax.surgery.report import compare
from graftax.train import DiffusionConfig, MeshConfig

TAIL = 30  # lines of a failed child's stderr that are shown
_NOT_KEPT = "Error writing persistent compilation cache entry"
"""How jax warns."""


def compile_steps(
    topology: str, path: str, overrides: Sequence[str], only: Sequence[str] = (), keep: Path | None = None
) -> list[dict[str, Any]]:
    """`graftax.evaluate.aot.measure` of the steps of the config at `path`, or of those in `only`, with `warnings`, the
    compiler's complaints of involuntary rematerialisation.

    `keep`: folder in which the compiled programs are left as jax's compilation cache, under the names by which a run of this
    config on that slice asks for them; None: they are not kept. Raises `BadInput` as `measure` does, where the config does
    not fit, and where a program cannot be kept.
    """
    slice_, (programs, mesh) = parse_topology(topology), programs_of(configs.read(path, overrides))
    by_name = {program.name: program for program in programs}
    if unknown := [name for name in only if name not in by_name]:
        raise BadInput(f"step {unknown[0]!r}: expected some of {', '.join(by_name)}{did_you_mean(unknown[0], by_name)}")
    wanted = only or list(by_name)
    for name in wanted:
        check(by_name[name], slice_, mesh)
    require_libtpu()
    if keep:
        _make(keep)
    rows = []
    with Progress(len(wanted), f"compile for {slice_}", unit="step") as progress:
        for name in wanted:
            rows.append(_in_child(slice_, name, path, overrides, keep))
            progress.advance()
    return rows


def kept(folder: Path) -> str:
    """How many programs a folder of `compile_steps` holds, and how a run finds them."""
    found = [entry.stat().st_size for entry in _entries(folder)]
    return f"{folder}: {len(found)} programs, {sum(found) / 1e6:.1f} MB; on the slice: {COMPILED}={folder} graftax ..."


def _make(folder: Path) -> None:
    """Make the folder for compiled programs, without which jax would go on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be made ({error.strerror})") from None


def _entries(folder: Path | None) -> set[Path]:
    """The compiled programs in a folder."""
    return set(folder.glob("*-cache")) if folder else set()


# --- What a config's steps are -----------------------------------------------------------------------------------------


def programs_of(tree: dict[str, Any]) -> tuple[list[Program], MeshConfig]:
    """The steps that a config's fields describe, and its mesh: a recipe's stage 1 (where it has something to learn), stage
    2 and sampling; of a model from scratch, training and sampling; of one that draws, sampling alone.

    What a recipe does not say of sampling is as the model's family draws (of a DiT the grafting paper's: DDPM, 250 steps,
    guidance 1.5), as many images at a time as stage 2 takes. Raises `BadInput` on other configs.
    """
    if "task" in tree:
        config = pretraining_of(tree)
        if not isinstance(config, MODELS):
            tasks = [task for task, kind in TASKS.items() if kind in MODELS]
            raise BadInput(f"config.task: got {config.task!r}, expected one of {tasks}, which train models that draw")
        spec = config.model.spec()
        return [train_program("train", spec, config.training), _sampling(spec, config.training)], config.mesh
    if tree.get("kind") == drawing.KIND:
        config = configs.build(drawing.DrawingConfig, tree)
        return [_drawing(config)], config.mesh
    recipe: Recipe = experiment_of(tree, *RECIPES)
    teacher, student, units = graft_of(recipe)
    stage, after = recipe.distill, recipe.finetune
    first = [stage1_program(teacher, student, units, stage.settings, stage.batch_size)] if units else []
    return [*first, train_program("stage 2", student, after), _sampling(student, after, recipe)], recipe.mesh


def graft_of(recipe: Recipe) -> tuple[ModelSpec, ModelSpec, tuple[Site | StepSite, ...]]:
    """Specs of a recipe's teacher and student, and what its stage 1 trains (`regression_units`), all without weights."""
    teacher = named_spec(recipe.teacher)
    edit = recipe.graft.edit
    student, sites = dry_run(edit, teacher)
    model = Model(student, {}, Meta(edits=(str(edit),), sites=tuple(map(str, sorted(sites)))))
    return teacher, student, regression_units(model, None) if has_stage_1(model) else ()


def dry_run(edit: Edit, spec: ModelSpec, held: Iterable[Site] = ()) -> tuple[ModelSpec, set[Site]]:
    """What a model of `spec` is after `edit`, and the sites that then hold scions, where `held` did before."""
    if isinstance(edit, Compose):
        sites = set(held)
        for one in edit.edits:
            spec, sites = dry_run(one, spec, sites)
        return spec, sites
    after = edit.on(spec)
    shapes = (spec, param_shapes(spec)), (after, param_shapes(after))
    found = edit.scions(spec, compare(*shapes, same=operator.eq, origin=edit.origin(spec)), held)
    again = edit.scions_on(spec) if isinstance(edit, Exchange) else ()  # an operator for its like shows in weights alone
    return after, {*found, *again}


def named_spec(name: str, what: str = "teacher") -> ModelSpec:
    """What a config's model is: read from its file where there is one, else known by its published name.

    Raises `BadInput` on other names, and as `graftax.load` does.
    """
    if is_shipped(name) or is_hub(name) or Path(name).exists():
        return api.read(name).spec
    spec = spec_of(Path(name).stem) or spec_of(name)
    if spec is None:
        raise BadInput(f"{what} {name!r}: no such file or folder, and no published model of that name")
    return spec


def _drawing(config: drawing.DrawingConfig) -> Program:
    spec = named_spec(config.model, "model")
    config.mesh.check_heads(spec.sizes.heads)
    return sample_program(spec, config.batch_size, plan=config.plan, dtype=config.dtype, loaded=config.weights)


def _sampling(spec: ModelSpec, stage: DiffusionConfig, recipe: Recipe | None = None) -> Program:
    """Sampling as a demo says, else as the model's family draws."""
    if isinstance(recipe, DemoConfig):
        sample = recipe.judging.sample
        return sample_program(spec, sample.batch_size, sample.sampling, dtype=stage.compute_dtype)
    return sample_program(spec, stage.batch_size // stage.accumulate, dtype=stage.compute_dtype)


# --- Children ----------------------------------------------------------------------------------------------------------


def _in_child(topology: Topology, name: str, path: str, overrides: Sequence[str], keep: Path | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "graftax.study.aot", str(topology), name, path, *overrides]
    # A second at least: what this machine's own processor computes on the way takes milliseconds, a step's program more.
    kept = {COMPILED: str(keep or ""), LEAST_SECONDS: "1"}
    there = _entries(keep)
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT, **kept}, capture_output=True, text=True, check=False)
    if done.returncode == BadInput.exit_code:
        raise BadInput(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-TAIL:])
        raise RuntimeError(f"compiling {name} for {topology} ended with {done.returncode}:\n{tail}")
    if lost := [line for line in done.stderr.splitlines() if _NOT_KEPT in line]:
        for entry in _entries(keep) - there:  # jax leaves them cut off
            entry.unlink()
        raise BadInput(f"{keep}: {name} is not kept ({lost[0].partition(_NOT_KEPT)[2].strip()})")
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
