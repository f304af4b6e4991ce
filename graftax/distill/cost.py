"""What a step of stage 1 costs, from the specs alone."""

from __future__ import annotations

from collections.abc import Iterable

from graftax.distill.steps import StepSite
from graftax.distill.teacher import up_to_last
from graftax.models.cost import block_cost, flops, merge_flops, operator_cost
from graftax.spec import ModelSpec
from graftax.surgery.select import Site


def stage1_flops(teacher: ModelSpec, student: ModelSpec, units: Iterable[Site | StepSite]) -> int:
    """Model FLOPs of one step of stage 1 per image: the teacher's pass up to its last site, and 3 x the forward passes of
    the scions at `units` (whole steps with their projection), backward counted as in `graftax.models.cost.train_flops`."""
    units = list(units)
    blocks = {i for unit in units for i in (unit.span if isinstance(unit, StepSite) else (unit.block,))}
    return flops(up_to_last(teacher, blocks), head=False) + 3 * sum(_unit_flops(student, unit) for unit in units)


def _unit_flops(student: ModelSpec, unit: Site | StepSite) -> int:
    if isinstance(unit, Site):
        return operator_cost(student, student.blocks[unit.block], unit.slot).flops
    ids = unit.step.blocks
    merge = merge_flops(student, len(ids)) if ids in student.merges else 0
    return merge + sum(block_cost(student, (i,))[1] for i in ids)
