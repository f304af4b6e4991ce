"""Edits on whole models: run, check, and write down what was done."""

from __future__ import annotations

import dataclasses

import jax

from graftax.errors import BadInput
from graftax.models import Model
from graftax.surgery.check import check
from graftax.surgery.edits import Edit
from graftax.surgery.inverse import Inverse
from graftax.surgery.report import Report
from graftax.surgery.select import select


def graft(model: Model, edit: Edit, rng: jax.Array) -> Model:
    """The model after `edit`; the model given stays as it is, and untouched leaves are shared between the two.

    `meta.edits` gains the edit's text, `meta.sites` the sites that now hold scions (none, for a mere program rewrite).
    Raises `BadInput` where the edit is impossible or its result does not fit its spec.
    """
    return apply_edit(model, edit, rng)[0]


def apply_edit(model: Model, edit: Edit, rng: jax.Array) -> tuple[Model, Report]:
    """`graft` together with its report."""
    spec, params, report = edit(model.spec, model.params, rng)
    _check_adapters(edit, report)
    check(spec, params)
    held = select(model.meta.sites, model.spec) if model.meta.sites else ()
    sites = edit.scions(model.spec, held) if isinstance(edit, Inverse) else {*report.moved(held), *report.sites}
    meta = dataclasses.replace(model.meta, edits=(*model.meta.edits, edit.text), sites=tuple(map(str, sorted(sites))))
    return Model(spec, params, meta), report


def _check_adapters(edit: Edit, report: Report) -> None:
    """An adapter is a change of one kernel: it means nothing on another."""
    carried = set(report.before.adapters) & set(report.after.adapters)
    if changed := sorted(adapter.path for adapter in carried if adapter.path not in report.kept):
        raise BadInput(f"{edit}: changes {changed[0]}, which carries an adapter; expected merge_lora() first")
