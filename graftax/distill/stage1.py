"""Stage 1 as a `Job` for the training loop, and as one call from a student to its distilled self."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from graftax.checkpoint.lock import holding
from graftax.data.feed import as_batch, as_batches
from graftax.diffusion import Noising
from graftax.distill.closed_form import calibrate
from graftax.distill.config import PAPER_BATCH, DistillConfig
from graftax.distill.cost import stage1_flops
from graftax.distill.groups import group_units, install_scions
from graftax.distill.heldout import heldout_errors
from graftax.distill.placing import shard_teacher
from graftax.distill.sites import check_pair, learnt_sites
from graftax.distill.steps import StepSite, regression_units, taken_out
from graftax.distill.teacher import Teacher
from graftax.distill.update import DistillState, create_state, make_distill_step, sharded_state
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.merge import MERGES
from graftax.surgery import check_trainable
from graftax.surgery.select import Selector
from graftax.train.loop import Batch, Batches, History, Job, Metrics, fit_recorded
from graftax.train.loop_config import LoopConfig
from graftax.train.noising import noising_for
from graftax.train.overview import parameter_table, write_parameters
from graftax.train.sharding import RULES, AxisRules, to_host


def distill(
    teacher: Model, student: Model, data: Any, config: DistillConfig | None = None, loop: LoopConfig | None = None,
    workdir: str | os.PathLike[str] | None = None, heldout: Batch | None = None, *, batch_size: int = PAPER_BATCH,
    sites: Selector | None = None, process: Noising | None = None, mesh: Mesh | None = None,
    rules: AxisRules = RULES, on_record: Callable[[dict[str, Any]], None] | None = None, show: bool = True,
) -> tuple[Model, History]:  # fmt: skip
    """Teach the student's scions what the teacher's operators do, all of them at once.

    `data`: arrays, which come in batches of `batch_size`, an iterable of batches or a grain dataset
    (`graftax.data.feed.as_batches`): image (b, h, w, c), what the teacher sees, and label (b,). Returns the student with
    trained scions, every other leaf the same object as before, and the records of the run as `graftax.train.loop.fit` writes
    them. No activation is ever stored. `loop` says how many of `config.steps` to run (None: all, default logging). With a
    `workdir` the run leaves checkpoints and metrics there, and the same call resumes it. With `config.calibration` the last
    layers are fitted before the first step, on the batches that training starts with. `heldout` (image (n, h, w, c), label
    (n,)) is evaluated when the loop says so; see `heldout_errors`. The rest as in `distill_job`.

    Raises what `distill_job` and `fit` raise, and BadInput if the loop has more steps than the config.
    """
    config = config or DistillConfig()
    loop = loop or LoopConfig(config.steps)
    if loop.steps > config.steps:
        raise BadInput(f"LoopConfig.steps: got {loop.steps}, expected at most DistillConfig.steps = {config.steps}")
    check_trainable("student", student.params)
    batches = as_batches(data, batch_size, loop.seed, teacher.spec)
    with holding(workdir, folder=True):
        if workdir:
            write_parameters(workdir, table_of(student, sites))
        if config.calibration:
            student = _calibrated(teacher, student, batches, config, loop, sites, process, mesh, rules, show)
        held = None if heldout is None else as_batch(heldout, teacher.spec)
        job = distill_job(teacher, student, config, sites=sites, process=process, mesh=mesh, rules=rules, heldout=held)
        state, history = fit_recorded(job, batches, loop, workdir, on_record=on_record, show=show)
    calibration = f", calibration={config.calibration}" if config.calibration else ""
    meta = student.meta.after(f"distill(steps={loop.steps}{calibration})", history, "error")
    return install(student, state, sites).replace(meta=meta), history


def table_of(student: Model, sites: Selector | None = None) -> str:
    """What stage 1 does with each parameter, as `distill` leaves it in workdir/parameters.txt: new, kept or frozen."""
    scions = [site.path(student.spec) for site in learnt_sites(student)]
    return parameter_table(student.params, scions, (_untouched(student, sites),))


def _untouched(student: Model, sites: Selector | None) -> str:
    """A pattern of the parameter paths that stage 1 leaves alone."""
    spec, found = student.spec, []
    for unit in regression_units(student, sites):
        if isinstance(unit, StepSite):
            blocks = unit.step.blocks
            found += [f"{MERGES}/{spec.merge_key(blocks)}"] if blocks in spec.merges else []
            found += [f"blocks/{spec.block_key(i)}" for i in blocks]
        else:
            found.append(unit.path(spec))
    return f"(?!(?:{'|'.join(found)})/).*"


def _calibrated(
    teacher: Model, student: Model, batches: Batches, config: DistillConfig, loop: LoopConfig, sites: Selector | None,
    process: Noising | None, mesh: Mesh | None, rules: AxisRules, show: bool,
) -> Model:  # fmt: skip
    """The student as `calibrate` leaves it; the batches go back, so that training sees the same with and without."""
    start = batches.state()
    rng = jax.random.fold_in(jax.random.key(loop.seed), config.steps)  # training folds in the numbers below
    student = calibrate(
        teacher, student, batches, config.calibration, config, sites=sites, process=process, mesh=mesh, rules=rules, rng=rng,
        show=show,
    )  # fmt: skip
    batches.restore(start)
    return student


def distill_job(
    teacher: Model, student: Model, config: DistillConfig, *, sites: Selector | None = None,
    process: Noising | None = None, mesh: Mesh | None = None, rules: AxisRules = RULES, heldout: Batch | None = None,
    label: str = "distill",
) -> Job[DistillState]:  # fmt: skip
    """The `Job` of stage 1, ready for `graftax.train.loop.fit`.

    `sites`: a selector on the student; None for what `graftax.distill.steps.regression_units` says. `process`:
    the noising process, None for what such teachers are trained with: DiT's 1000 steps, or the straight path of a flow.
    With a `mesh` teacher, scions and optimisers are laid out by `rules`.

    Raises BadInput if there are no sites, if teacher and student differ in depth, width, tokens or classes, or if a site
    does not run exactly once in the teacher.
    """
    chosen = regression_units(student, sites)
    check_pair(teacher, student, taken_out(chosen))
    process = noising_for(teacher.spec, process)
    source = Teacher(teacher.spec, group_units(student.spec, chosen), process, config)
    prepared = shard_teacher(source, teacher.params, mesh, rules)
    update = make_distill_step(teacher.spec, student.spec, chosen, process, config, mesh=mesh, rules=rules)
    errors = None
    if heldout is not None:
        errors = heldout_errors(teacher.spec, student.spec, chosen, process, heldout, config, mesh=mesh, rules=rules)

    def init() -> DistillState:
        if mesh is None:
            return create_state(student.spec, student.params, chosen, config)
        return sharded_state(student.spec, student.params, chosen, config, mesh, rules)

    def step(state: DistillState, batch: Batch, key: jax.Array) -> tuple[DistillState, Metrics]:
        return update(state, prepared, batch, key)

    metadata = {
        "teacher": teacher.spec.to_json(), "teacher_sha256": teacher.meta.sha256, "student": student.spec.to_json(),
        "sites": [str(site) for site in chosen], "distill": dataclasses.asdict(config),
        "process": dataclasses.asdict(process),
    }  # fmt: skip
    return Job(
        init=init, step=step, metadata=metadata, mesh=mesh, label=label,
        flops_per_image=stage1_flops(teacher.spec, student.spec, chosen),
        evaluate=None if errors is None else lambda state: errors(state.scions, prepared),
    )  # fmt: skip


def install(student: Model, state: DistillState, sites: Selector | None = None) -> Model:
    """The student with the scions of `state` at their sites; all other leaves are the same objects.

    `sites` must be those of the job that made the state.
    """
    groups = group_units(student.spec, regression_units(student, sites))
    # Through the host, since the state may be spread over a mesh and the student's other leaves are not.
    scions = jax.tree.map(jnp.asarray, to_host(state.scions))
    return student.replace(params=install_scions(student.params, groups, scions))
