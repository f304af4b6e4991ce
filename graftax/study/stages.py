"""The steps of a grafting experiment as configs say them, each from models to a model: open, graft, distil, fine-tune."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

from graftax import api
from graftax.data.pixels import images as image_data
from graftax.data.pixels.decoding import Decode, decoder_for
from graftax.data.pixels.images import Images
from graftax.distill import PAPER_BATCH, distill, neuron_importance
from graftax.distill.sites import learnt_sites
from graftax.distill.stage import DistillStage
from graftax.distill.steps import merged_steps
from graftax.errors import BadInput, naming
from graftax.evaluate.preview import preview
from graftax.models import Model
from graftax.models.backbone import find
from graftax.spec import ModelSpec, Option
from graftax.study.missing import require_model
from graftax.surgery import Edit, Report, Site, apply_edit
from graftax.surgery.config import GraftConfig
from graftax.surgery.edits import Compose
from graftax.surgery.replace import Exchange, weighed, with_importance
from graftax.train import DiffusionConfig, MeshConfig, finetune
from graftax.train.loop import History

Asked = TypeVar("Asked")
ReadData = Callable[[], Images]


def open_model(
    name: str | Path, vet: Callable[[ModelSpec], object] = bool, dtype: str | None = None, **overrides: Any
) -> Model:
    """`graftax.load`; before anything touches a device, `vet` may refuse the spec."""
    return api.place(read_model(name, vet, **overrides), dtype)


def read_model(name: str | Path, vet: Callable[[ModelSpec], object] = bool, **overrides: Any) -> Model:
    """`open_model` on no device: parameters are numpy arrays, views of the file."""
    require_model(name)
    model = api.read(name, **overrides)
    vet(model.spec)
    return model


def open_to_draw(
    name: str, read: Callable[[ModelSpec], Asked], *, latents: str = "auto", vet: Callable[[ModelSpec], object] = bool,
    overrides: Mapping[str, Option] | None = None,
) -> tuple[Model, Asked, Decode | None]:  # fmt: skip
    """The one door of all that draws: the model on the devices, what `read` gives it to draw, and how its arrays become
    pictures (`decoder_for`), None where there is no way.

    The model comes to the devices last, so that `read` may run a text encoder there and let go of it; until then `vet`,
    `read` and the decoder may refuse the model, in this order. `overrides`: the keywords of `graftax.load`, dtype included.
    """
    known: dict[str, Any] = dict(overrides or {})
    dtype = known.pop("dtype", None)
    model = read_model(name, vet, **known)
    decode = decoder_for(model.spec, latents, name)
    asked = read(model.spec)
    return api.place(model, dtype), asked, decode


# --- Graft ---------------------------------------------------------------------------------------------------------------


def check_edit(edit: Edit, spec: ModelSpec, data: ReadData | None = None) -> None:
    """Raise `BadInput` where an edit does not fit `spec`, or needs data and gets none. No weights and no device are used."""
    after = _refuse_twice(edit, spec)
    with naming(str(edit)):
        find(after).check(after)
    if weighed(edit, spec) and data is None:
        raise BadInput("graft: init 'transplant' of narrower MLPs looks at their neurons on data, expected --config")


def _refuse_twice(edit: Edit, spec: ModelSpec) -> ModelSpec:
    """The spec afterwards. Raises `BadInput` where the edit is impossible on `spec`, or exchanges an operator that it has
    exchanged before."""
    exchanged: dict[Site, Edit] = {}
    for one in edit.edits if isinstance(edit, Compose) else (edit,):
        after, origin = one.on(spec), one.origin(spec)
        sites = set(one.scions_on(spec)) if isinstance(one, Exchange) else set()
        if twice := sorted(sites & exchanged.keys()):
            first = exchanged[twice[0]]
            raise BadInput(f"{one}: {twice[0]} is exchanged by {first} already, expected each site in one edit")
        exchanged |= dict.fromkeys(sites, one)
        if origin is not None:  # blocks have got other numbers
            there = {(old, new) for new, old in enumerate(origin)}
            exchanged = {Site(new, s.slot): e for s, e in exchanged.items() for old, new in there if old == s.block}
        spec = after
    return spec


def run_graft(teacher: Model, config: GraftConfig, data: ReadData | None = None) -> tuple[Model, Report]:
    """The student with its scions, and what the edit did. `data` is called where neurons must be weighed on images."""
    rng, edit = jax.random.key(config.seed), config.edit
    if data and (sites := weighed(edit, teacher.spec)):
        batches = data().batches(PAPER_BATCH, config.seed)
        edit = with_importance(edit, neuron_importance(teacher, batches, config.calibration, sites, rng=rng))
    return apply_edit(teacher, edit, rng)


# --- Train ---------------------------------------------------------------------------------------------------------------


def has_stage_1(student: Model) -> bool:
    """Whether stage 1 has anything to teach: scions with input and output, or merged steps."""
    return bool(learnt_sites(student) or merged_steps(student.spec))


def run_distill(
    teacher: Model, student: Model, stage: DistillStage, data: Images, workdir: Path | None, mesh: MeshConfig
) -> tuple[Model, History]:
    """Stage 1 over all of the student's sites; `workdir` makes it resumable. Returns the student and the records."""
    student, history = distill(
        teacher, student, data.batches(stage.batch_size, stage.seed), stage.settings, stage.loop, workdir, heldout_of(data),
        mesh=mesh.build(), rules=mesh.rules,
    )  # fmt: skip
    return _saw(student, data), history


def run_finetune(
    student: Model, stage: DiffusionConfig, data: Images, workdir: Path | None, mesh: MeshConfig, *, evaluate: bool = True
) -> tuple[Model, History]:
    """Stage 2 with the full objective. Returns the student with averaged weights and the records.

    `evaluate`: also on held-out data, when the loop says so; whoever measures the result has no need of its end.
    """
    image_data.check_fit(data, student.spec)
    heldout = heldout_of(data) if evaluate else None
    student, history = finetune(
        student, data.batches(stage.batch_size, stage.loop.seed), stage, workdir, heldout, mesh=mesh.build(),
        rules=mesh.rules, watch=preview(stage.preview, student.spec, data),
    )  # fmt: skip
    return _saw(student, data), history


def _saw(student: Model, data: Images) -> Model:
    """The student, with the images of its last training in its provenance."""
    training = student.meta.edits[-1]
    return student.replace(
        meta=dataclasses.replace(student.meta, data=(*student.meta.data, f"{training}: {data.described}"))
    )


def heldout_of(data: Images) -> dict[str, Any] | None:
    """The held-out images with what they are conditioned on, None where there are none."""
    return data.heldout


def last_eval(history: History) -> dict[str, Any]:
    """The last held-out numbers of a run, {} where there are none."""
    return next((line for line in reversed(history) if line["split"] == "eval"), {})
