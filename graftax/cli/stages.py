"""The steps of a grafting experiment, each from models to a model: open, graft, distil, fine-tune."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax.checkpoint import open_checkpoint
from graftax.cli import nets, tasks
from graftax.cli.images import Images
from graftax.cli.schema import Denoising, DistillStage, GraftConfig
from graftax.distill import distill
from graftax.errors import BadInput
from graftax.models import Meta, Model, param_shapes
from graftax.spec import ModelSpec, Option
from graftax.surgery import Edit, Report, apply_edit, check, compose, replace, resize
from graftax.train import MeshConfig, fit, train_job
from graftax.train.record import FILE, read_metrics

_REPLACE = re.compile(r"\s*(?P<selector>[^=]+?)\s*=\s*(?P<kind>\w+)\s*(?:\((?P<options>.*)\))?\s*")
EXAMPLE = "blocks[1::2].mixer=hyena_x(kernel=4)"
History = list[dict[str, Any]]


def read_model(name: str | Path, **overrides: Option) -> Model:
    """The model at a path, or the shipped one ("demo"), checked, its parameters numpy arrays still: no device is used."""
    path = nets.demo_path("dit") if name == "demo" else Path(name)
    if not path.exists():
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


def parse_edit(config: GraftConfig) -> Edit:
    """The edit that `config` describes. Raises `BadInput` on malformed text, unknown operators and none at all."""
    edits = [replace(s, kind, init=config.init, **options) for s, kind, options in map(_parse_replace, config.replace)]
    edits += [resize(s, ratio, init=config.init) for s, ratio in map(_parse_resize, config.resize)]
    if not edits:
        raise BadInput("graft: no edits, expected --replace or --resize")
    return edits[0] if len(edits) == 1 else compose(*edits)


def check_edit(config: GraftConfig, spec: ModelSpec) -> None:
    """Raise `BadInput` where the edits do not fit `spec`. They run on shapes alone: no weights, no device."""
    edit = parse_edit(config)
    key = jax.eval_shape(lambda: jax.random.key(0))
    jax.eval_shape(lambda params, rng: edit(spec, params, rng)[1], param_shapes(spec), key)


def run_graft(teacher: Model, config: GraftConfig) -> tuple[Model, Report]:
    """The student with fresh scions, and what the edit did."""
    return apply_edit(teacher, parse_edit(config), jax.random.key(config.seed))


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
        literal = value
    if not isinstance(literal, int | float | bool | str):
        raise BadInput(f"replace {text!r}: option {name} is {value}, expected a number, true/false or a word")
    return name, literal


def _parse_resize(text: str) -> tuple[str, float]:
    selector, _, ratio = text.partition("=")
    try:
        return selector.strip(), float(ratio)
    except ValueError:
        raise BadInput(f"resize {text!r}: expected SELECTOR=RATIO, like blocks[*].mlp=3") from None


# --- Train ---------------------------------------------------------------------------------------------------------------


def run_distill(
    teacher: Model, student: Model, stage: DistillStage, data: Images, workdir: Path | None, mesh: MeshConfig
) -> tuple[Model, History]:
    """Stage 1 over all of the student's sites; `workdir` makes it resumable. Returns the student and the records."""
    heldout = {"image": data.test, "label": data.test_labels} if data.held_out else None
    student, history = distill(
        teacher, student, data.batches(stage.batch_size, stage.seed), stage.settings, stage.loop, workdir, heldout,
        mesh=mesh.build(),
    )  # fmt: skip
    return _with_edit(student, f"distill({stage.settings.steps} steps)"), history


def run_finetune(
    student: Model, stage: Denoising, data: Images, workdir: Path | None, mesh: MeshConfig
) -> tuple[Model, History]:
    """Stage 2 with the full objective. Returns the student with averaged weights and the records."""
    loss, evaluate = tasks.denoising(stage, student.spec, data)
    job = train_job(
        lambda: student.params, loss, stage.optimiser, ema_decay=stage.ema_decay, frozen=stage.frozen, mesh=mesh.build(),
        metadata={"spec": student.spec.to_json(), "start": fingerprint(student)}, evaluate=evaluate, label="stage 2",
    )  # fmt: skip
    history: History = []
    state = fit(job, data.batches(stage.batch_size, stage.loop.seed), stage.loop, workdir, on_record=history.append)
    if workdir and (workdir / FILE).exists():  # a run that resumed has earlier records there
        history = read_metrics(workdir)
    student = student.replace(params=jax.tree.map(jnp.asarray, jax.device_get(state.ema_params)))
    return _with_edit(student, f"finetune({stage.loop.steps} steps)"), history


def fingerprint(model: Model) -> str:
    """SHA-256 over all weights: what a resumed run must have started from."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(model.params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _with_edit(model: Model, text: str) -> Model:
    return model.replace(meta=dataclasses.replace(model.meta, edits=(*model.meta.edits, text)))


def last_eval(history: History) -> dict[str, Any]:
    """The last held-out numbers of a run, {} where there are none."""
    return next((line for line in reversed(history) if line["split"] == "eval"), {})
