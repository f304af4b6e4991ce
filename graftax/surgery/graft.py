"""Edits on whole models: run, check, and write down what was done."""

from __future__ import annotations

import dataclasses

import jax

from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.arguments import as_key
from graftax.models.joined import whole
from graftax.surgery.check import check
from graftax.surgery.edits import Edit
from graftax.surgery.report import Report
from graftax.surgery.select import select


def graft(model: Model, edit: Edit, rng: jax.Array | None = None) -> Model:
    """The model after `edit`; the model given stays as it is, and untouched leaves are shared between the two.

    `rng` is needed by edits that draw weights. `meta.edits` gains the edit's text, `meta.sites` the sites that now hold
    scions (none, for a mere program rewrite). Raises `BadInput` where the edit is impossible or its result does not fit its
    spec.
    """
    return apply_edit(model, edit, rng)[0]


def apply_edit(model: Model, edit: Edit, rng: jax.Array | None = None) -> tuple[Model, Report]:
    """`graft` together with its report."""
    if not isinstance(edit, Edit):
        raise BadInput(f"edit: got {edit!r}, expected an edit like graftax.replace(..), or graftax.parse(text)")
    rng = None if rng is None else as_key(rng)
    held = select(model.meta.sites, model.spec) if model.meta.sites else ()
    (spec, params, report), sites = edit.followed(model.spec, whole(model.params), rng, held)
    _check_adapters(edit, report)
    check(spec, params)
    meta = dataclasses.replace(model.meta, edits=(*model.meta.edits, str(edit)), sites=tuple(map(str, sorted(sites))))
    return Model(spec, params, meta), report


def _check_adapters(edit: Edit, report: Report) -> None:
    """An adapter is a change of one kernel: it means nothing on another."""
    carried = set(report.before.adapters) & set(report.after.adapters)
    if changed := sorted(adapter.path for adapter in carried if adapter.path not in report.kept):
        raise BadInput(f"{edit}: changes {changed[0]}, which carries an adapter; expected merge_lora() first")
