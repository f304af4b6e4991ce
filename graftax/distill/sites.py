"""Which sites stage 1 works on, and whether teacher and student go together."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from graftax.blocks import block_kind, build
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.lora import LORA
from graftax.ops.base import shapes_of
from graftax.spec import ModelSpec
from graftax.surgery.select import Selector, Site, select

ADDED = ("class_tokens", "rope")
"""Options of frames that add to the context of blocks and change nothing else."""


def scion_sites(student: Model, sites: Selector | None) -> tuple[Site, ...]:
    """The selected sites, or all that hold scions which can be learnt where `sites` is None.

    Raises `BadInput` where there are none, and on selected ones that have neither input nor output to learn from.
    """
    if sites is None:
        found = learnt_sites(student)
        if not found:
            what = "scions at modulations and norms alone" if student.meta.sites else "no scions in its meta"
            raise BadInput(f"distillation sites: the student has {what}, expected a graft of mixers, or explicit sites")
        return found
    chosen = select(sites, student.spec)
    if untapped := [site for site in chosen if not _learnt(student.spec, site)]:
        raise BadInput(f"distillation sites: {untapped[0]} has no input and output to learn from; stage 2 trains it")
    return chosen


def learnt_sites(student: Model) -> tuple[Site, ...]:
    """The scions that stage 1 can teach; modulations and norms are left to least squares and to stage 2."""
    held = select(student.meta.sites, student.spec) if student.meta.sites else ()
    return tuple(site for site in held if _learnt(student.spec, site))


def norm_sites(student: Model, sites: Selector | None) -> tuple[Site, ...]:
    """The norms with weights among the selected sites, or among all scions: what `graftax.distill.calibrate` alone fits."""
    held = student.meta.sites if sites is None else sites
    return tuple(site for site in (select(held, student.spec) if held else ()) if _scaled(student.spec, site))


def _scaled(spec: ModelSpec, site: Site) -> bool:
    kind = block_kind(spec.blocks[site.block].kind)
    return site.slot in kind.norms and bool(shapes_of(build(spec, kind.kind, site.slot, site.held(spec))))


def _learnt(spec: ModelSpec, site: Site) -> bool:
    return site.slot in block_kind(spec.blocks[site.block].kind).tapped


def _as_alone(spec: ModelSpec) -> ModelSpec:
    """`spec` without what only adds to the things that blocks read beside their tokens: a teacher may lack it."""
    frame = tuple((name, value) for name, value in spec.frame if name not in ADDED)
    return spec.replace(frame=frame, sizes=dataclasses.replace(spec.sizes, context=0))


def check_pair(teacher: Model, student: Model, fewer: int = 0) -> None:
    """Raise `BadInput` unless the student's operators can be taught what the teacher's do.

    `fewer`: blocks that the student does not have any more.
    """
    if student.spec.depth != teacher.spec.depth - fewer:
        less = f" less {fewer}" if fewer else ""
        raise BadInput(f"student depth: {student.spec.depth}, expected the teacher's {teacher.spec.depth}{less}")
    for name in ("backbone", "sizes", "frame"):
        theirs, ours = (getattr(_as_alone(model.spec), name) for model in (teacher, student))
        if theirs != ours:
            raise BadInput(f"student {name}: {ours}, expected the teacher's {theirs}")
    # Stage 1 trains operators as they are without adapters, so one that already does something would be left out.
    adapters: dict[str, Any] = flatten_dict(student.params.get(LORA, {}), sep="/")
    trained = [path for path, leaf in adapters.items() if np.any(leaf)]
    if changed := [path.removesuffix("/b") for path in trained if path.endswith("/b")]:
        raise BadInput(f"student: trained adapters at {changed[0]} and {len(changed) - 1} more, expected merge_lora() first")
