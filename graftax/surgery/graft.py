"""Edits on whole models: run, check, and write down what was done."""

from __future__ import annotations

import dataclasses

import jax

from graftax.models import Model
from graftax.surgery.check import check
from graftax.surgery.edits import Edit
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
    check(spec, params)
    held = select(model.meta.sites, spec) if model.meta.sites else ()
    sites = tuple(str(site) for site in sorted({*held, *report.sites}))
    meta = dataclasses.replace(model.meta, edits=(*model.meta.edits, edit.text), sites=sites)
    return Model(spec, params, meta), report
