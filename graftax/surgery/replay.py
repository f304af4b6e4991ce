"""The recipe that a model's provenance records, done again to another model."""

from __future__ import annotations

import dataclasses

import jax

from graftax.errors import BadInput
from graftax.models import Meta, Model
from graftax.surgery.edits import Compose, Edit
from graftax.surgery.graft import apply_edit
from graftax.surgery.grammar import Call, read
from graftax.surgery.inverse import Inverse
from graftax.surgery.parse import parse
from graftax.surgery.report import Report

TRAININGS = ("distill", "finetune", "train")
"""What provenance records beside edits: trainings, which cannot be replayed from a text."""


def replay(meta: Meta, other: Model, rng: jax.Array | None = None) -> tuple[Model, Report, tuple[str, ...]]:
    """`other` after the edits that `meta` records, what they did, and the trainings that were left out.

    Every edit gets the same `rng`, so that a recipe made with one key in one go is repeated to the bit. Where a recipe goes
    back to its original, that is `other` as it was. Raises `BadInput` where `meta` records no edit, and where one of them
    does not fit.
    """
    texts = [text for text in meta.edits if not is_training(text)]
    if not texts:
        raise BadInput(f"replay: no edits among {list(meta.edits)}, expected a model that was grafted")
    model, report = other, None
    for text in texts:
        model, later = apply_edit(model, _from(other, parse(text)), rng)
        report = later if report is None else report.then(later)
    assert report is not None, "there is an edit"
    return model, report, tuple(text for text in meta.edits if is_training(text))


def is_training(text: str) -> bool:
    """Whether a line of provenance is a training, not an edit."""
    found = read(text)
    return isinstance(found, Call) and found.name in TRAININGS


def _from(original: Model, edit: Edit) -> Edit:
    """`edit` with the model that its inverses go back to."""
    if isinstance(edit, Compose):
        return Compose(tuple(_from(original, one) for one in edit.edits))
    return dataclasses.replace(edit, original=original) if isinstance(edit, Inverse) else edit
