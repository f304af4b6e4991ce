"""The steps of a grafting experiment, each from models to a model: open, graft, distil, fine-tune."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax.checkpoint import open_checkpoint
from graftax.checkpoint.files import sha256_of_arrays
from graftax.checkpoint.paths import work_path
from graftax.cli.experiments import tasks
from graftax.cli.experiments.preview import with_preview
from graftax.cli.pixels import nets
from graftax.cli.pixels.images import Images
from graftax.cli.schema import Denoising, DistillStage, GraftConfig
from graftax.distill import PAPER_BATCH, distill, neuron_importance
from graftax.distill.steps import MergedStep, regression_units
from graftax.errors import BadInput
from graftax.models import Meta, Model, param_shapes
from graftax.models.collect import spread
from graftax.models.cost import train_flops
from graftax.spec import ModelSpec, Option, block_key, merge_key
from graftax.surgery import Edit, Report, apply_edit, check, compose, drop, lora, parallel_pairs, replace, resize, tie
from graftax.surgery.edits import Importance
from graftax.surgery.select import Site, select
from graftax.train import MeshConfig, fit, train_job, training_tree
from graftax.train.overview import parameter_table, write_parameters
from graftax.train.record import FILE, read_metrics
from graftax.train.sharding import to_host

_REPLACE = re.compile(r"\s*(?P<selector>[^=]+?)\s*=\s*(?P<kind>\w+)\s*(?:\((?P<options>.*)\))?\s*")
_CALL = re.compile(r"\s*(?P<name>\w+)\s*\((?P<arguments>.*)\)\s*")
_BLOCK = r"\s*(?:0|[1-9]\d*)\s*"
_GROUP = rf"\s*\({_BLOCK}(?:,{_BLOCK})+\)\s*"
RESTRUCTURE: dict[str, tuple[Callable[..., Edit], str]] = {
    "parallel_pairs": (parallel_pairs, rf"\s*|{_BLOCK}(?:,{_BLOCK})?"),
    "drop": (drop, rf"{_BLOCK}(?:,{_BLOCK})*"),
    "tie": (tie, rf"{_GROUP}(?:,{_GROUP})*"),
}
"""Edits of depth by name, and what may stand between their brackets."""

EXAMPLE = "blocks[1::2].mixer=hyena_x(kernel=4)"
History = list[dict[str, Any]]
ReadData = Callable[[], Images]


def read_model(name: str | Path, **overrides: Any) -> Model:
    """The model at a path, or the shipped one ("demo"), checked, its parameters numpy arrays still: no device is used."""
    path = nets.demo_path("dit") if name == "demo" else Path(name)
    if not work_path(path).exists():
        raise BadInput(f"model {str(name)!r}: no such file or folder")
    spec, params, meta = open_checkpoint(path, **overrides)
    check(spec, params)
    return Model(spec, params, Meta.from_dict(meta))


def open_model(name: str | Path, vet: Callable[[ModelSpec], object] = bool, **overrides: Any) -> Model:
    """`read_model` with its parameters on the device. Before that, `vet` may refuse the spec."""
    model = read_model(name, **overrides)
    vet(model.spec)
    return model.replace(params=jax.tree.map(jnp.asarray, model.params))


# --- Graft ---------------------------------------------------------------------------------------------------------------


def parse_edit(config: GraftConfig, importance: Importance | None = None) -> Edit:
    """The edit that `config` describes. Raises `BadInput` on malformed text, unknown operators and none at all."""
    edits = [
        replace(s, kind, init=config.init, importance=importance, **options)
        for s, kind, options in map(_parse_replace, config.replace)
    ]
    edits += [resize(s, ratio, init=config.init, importance=importance) for s, ratio in map(_parse_resize, config.resize)]
    edits += map(_parse_restructure, config.restructure)
    edits += [lora(target, rank, alpha) for target, rank, alpha in map(_parse_lora, config.lora)]
    if not edits:
        raise BadInput("graft: no edits, expected --replace, --resize, --restructure or --lora")
    return edits[0] if len(edits) == 1 else compose(*edits)


def check_edit(config: GraftConfig, spec: ModelSpec, data: ReadData | None = None) -> None:
    """Raise `BadInput` where the edits do not fit `spec`, or need data and get none. No weights and no device are used."""
    if _narrowed(config, spec) and data is None:
        raise BadInput("graft: init 'transplant' of narrower MLPs looks at their neurons on data, expected --config")


def run_graft(teacher: Model, config: GraftConfig, data: ReadData | None = None) -> tuple[Model, Report]:
    """The student with its scions, and what the edit did. `data` is called where neurons must be weighed on images."""
    rng, importance = jax.random.key(config.seed), None
    if data and (narrowed := _narrowed(config, teacher.spec)):
        batches = data().batches(PAPER_BATCH, config.seed)
        importance = neuron_importance(teacher, batches, config.calibration, narrowed, rng=rng)
    return apply_edit(teacher, parse_edit(config, importance), rng)


def dry_run(config: GraftConfig, spec: ModelSpec) -> tuple[ModelSpec, Report]:
    """The student's spec and what the edits do, from shapes alone. Raises what the edits raise."""
    mlps = {Site(i, "mlp"): block.mlp for i, block in enumerate(spec.blocks) if block.mlp.kind == "mlp"}
    unweighed = {str(site): np.zeros(round(mlp.option("ratio") * spec.hidden_size)) for site, mlp in mlps.items()}
    edit, after = parse_edit(config, unweighed), []

    def run(params: Any, rng: jax.Array) -> Any:
        student, params, report = edit(spec, params, rng)
        after.append((student, report))
        return params

    jax.eval_shape(run, param_shapes(spec), jax.eval_shape(lambda: jax.random.key(0)))
    return after[0]


def _narrowed(config: GraftConfig, spec: ModelSpec) -> tuple[Site, ...]:
    """The MLPs whose neurons the edits must choose from."""
    student, report = dry_run(config, spec)
    sites = {Site(i, "mlp"): block.mlp for i, block in enumerate(spec.blocks) if block.mlp.kind == "mlp"}
    ratios = {site: student.blocks[now.block].mlp for site in sites for now in report.moved([site])}
    fewer = [s for s, new in ratios.items() if new.kind == "mlp" and new.option("ratio") < sites[s].option("ratio")]
    return tuple(fewer) if config.init == "transplant" else ()


def _parse_replace(text: str) -> tuple[str, str, dict[str, Option]]:
    match = _REPLACE.fullmatch(text)
    if match is None:
        raise BadInput(f"replace {text!r}: expected SELECTOR=OPERATOR(option=value), like {EXAMPLE}")
    return match["selector"], match["kind"], dict(_option(text, part) for part in _split(match["options"]))


def _split(options: str | None) -> list[str]:
    return [part for part in (options or "").split(",") if part.strip()]


def _option(text: str, part: str) -> tuple[str, Option]:
    name, equals, value = (piece.strip() for piece in part.partition("="))
    if not equals or not name.isidentifier():
        raise BadInput(f"replace {text!r}: option {part.strip()!r}, expected name=value")
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        literal = {"true": True, "false": False}.get(value, value)
    if not isinstance(literal, int | float | bool | str):
        raise BadInput(f"replace {text!r}: option {name} is {value}, expected a number, true/false or a word")
    return name, literal


def _parse_restructure(text: str) -> Edit:
    call = _CALL.fullmatch(text)
    edit, arguments = RESTRUCTURE.get(call["name"] if call else "", (None, ""))
    if edit is None or call is None or not re.fullmatch(arguments, call["arguments"]):
        raise BadInput(f"restructure {text!r}: expected like parallel_pairs(), drop(3, 5) or tie((1, 2), (7, 8))")
    return edit(*ast.literal_eval(f"[{call['arguments']}]"))


def _parse_resize(text: str) -> tuple[str, float]:
    selector, _, ratio = text.partition("=")
    try:
        return selector.strip(), float(ratio)
    except ValueError:
        raise BadInput(f"resize {text!r}: expected SELECTOR=RATIO, like blocks[*].mlp=3") from None


def _parse_lora(text: str) -> tuple[str, int, float]:
    target, _, numbers = text.rpartition("=")
    rank, _, alpha = numbers.partition(",")
    try:
        return target.strip(), int(rank), float(alpha or 16)
    except ValueError:
        raise BadInput(f"lora {text!r}: expected TARGET=RANK or TARGET=RANK,ALPHA, like blocks[*].mixer=8") from None


# --- Train ---------------------------------------------------------------------------------------------------------------


def run_distill(
    teacher: Model, student: Model, stage: DistillStage, data: Images, workdir: Path | None, mesh: MeshConfig
) -> tuple[Model, History]:
    """Stage 1 over all of the student's sites; `workdir` makes it resumable. Returns the student and the records."""
    if workdir:
        write_parameters(workdir, parameter_table(student.params, _scions(student), (_untouched(student),)))
    heldout = {"image": data.test, "label": data.test_labels} if data.held_out else None
    student, history = distill(
        teacher, student, data.batches(stage.batch_size, stage.seed), stage.settings, stage.loop, workdir, heldout,
        mesh=mesh.build(), rules=mesh.rules,
    )  # fmt: skip
    fitted = f", calibrated on {stage.settings.calibration} batches" if stage.settings.calibration else ""
    return _with_edit(student, f"distill({stage.settings.steps} steps{fitted})"), history


def run_finetune(
    student: Model, stage: Denoising, data: Images, workdir: Path | None, mesh: MeshConfig
) -> tuple[Model, History]:
    """Stage 2 with the full objective. Returns the student with averaged weights and the records."""
    loss, evaluate = tasks.denoising(stage, student.spec, data, mesh)
    evaluate = with_preview(evaluate, stage.preview, student.spec, data)
    if workdir:
        write_parameters(workdir, parameter_table(student.params, _scions(student), stage.frozen))
    job = train_job(
        lambda: training_tree(student.spec, student.params, stage.frozen), loss, stage.optimiser,
        ema_decay=stage.ema_decay, frozen=stage.frozen, mesh=mesh.build(),
        metadata={"spec": student.spec.to_json(), "start": sha256_of_arrays(student.params)}, evaluate=evaluate,
        label="stage 2", flops_per_image=train_flops(student.spec), rules=mesh.rules, accumulate=stage.accumulate,
    )  # fmt: skip
    history: History = []
    state = fit(job, data.batches(stage.batch_size, stage.loop.seed), stage.loop, workdir, on_record=history.append)
    if workdir and (workdir / FILE).exists():  # a run that resumed has earlier records there
        history = read_metrics(workdir)
    averaged = spread(student.spec, to_host(state.ema_params))
    student = student.replace(params=jax.tree.map(jnp.asarray, averaged))
    return _with_edit(student, f"finetune({stage.loop.steps} steps)"), history


def _untouched(student: Model) -> str:
    """A pattern of the parameter paths that stage 1 leaves alone."""
    trained: list[str] = []
    for unit in regression_units(student, None):
        if isinstance(unit, MergedStep):
            blocks = unit.step.blocks
            trained += [f"merges/{merge_key(blocks)}", *(f"blocks/{block_key(i)}" for i in blocks)]
        else:
            trained.append(unit.path)
    return f"(?!(?:{'|'.join(trained)})/).*"


def _scions(student: Model) -> tuple[Site, ...]:
    return select(student.meta.sites, student.spec) if student.meta.sites else ()


def _with_edit(model: Model, text: str) -> Model:
    return model.replace(meta=dataclasses.replace(model.meta, edits=(*model.meta.edits, text)))


def last_eval(history: History) -> dict[str, Any]:
    """The last held-out numbers of a run, {} where there are none."""
    return next((line for line in reversed(history) if line["split"] == "eval"), {})
