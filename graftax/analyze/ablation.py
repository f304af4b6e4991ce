"""Which regression objective suits which operator: the same layers grafted onto themselves, taught with L1, L2 and Huber.

The grafting paper's ablation (arXiv 2506.05340, Table 1 iii and iv): chosen layers get operators of their own kind with
random weights, learn in stage 1 under each objective, and are plugged in without any fine-tuning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from graftax.diffusion import Process
from graftax.distill import DistillConfig, create_state, distill
from graftax.distill.groups import group_units
from graftax.distill.heldout import heldout_errors
from graftax.distill.losses import LOSSES
from graftax.distill.sites import scion_sites
from graftax.distill.teacher import Teacher
from graftax.errors import BadInput
from graftax.models import Model
from graftax.spec import SLOTS, OpSpec
from graftax.surgery import Site, compose, graft, replace
from graftax.train.loop import Batch, Batches
from graftax.train.loop_config import LoopConfig

PAPER_SHARES = (0 / 27, 7 / 27, 16 / 27, 26 / 27, 1.0)
"""Where in the depth the paper's layers 1, 8, 17, 27 and 28 of 28 are."""


@dataclass(frozen=True, eq=False)
class Ablated:
    """One objective on one slot: the student as stage 1 left it, and its held-out numbers.

    `losses`: mean over sites of every objective, by name, whatever was trained on; `errors`: relative error
    ||prediction - target|| / ||target|| by site, and "mean".
    """

    slot: str
    objective: str
    student: Model
    losses: dict[str, float]
    errors: dict[str, float]


def paper_blocks(depth: int) -> tuple[int, ...]:
    """The paper's layers (blocks 0, 7, 16, 26, 27 of 28) in a model of `depth` blocks, each once."""
    return tuple(dict.fromkeys(round(share * (depth - 1)) for share in PAPER_SHARES))


def objective_ablation(
    teacher: Model, batches: Callable[[], Batches], heldout: Batch, config: DistillConfig | None = None, *,
    slot: str = "mixer", blocks: Sequence[int] | None = None, objectives: Sequence[str] = LOSSES, seed: int = 0,
    log_every: int = 50, process: Process | None = None, show: bool = True,
) -> list[Ablated]:  # fmt: skip
    """Graft `blocks` of one slot onto themselves and teach them under each of `objectives`, all else equal.

    Every objective starts from the same random weights (`seed`) and sees the same batches, times and noise: `batches()`
    gives a fresh iterator of image (b, h, w, c), label (b,). `config` is that of stage 1, by default the paper's; its loss
    of the slot is overruled. heldout: image (n, h, w, c), label (n,). `blocks`: by default `paper_blocks`. Raises `BadInput`
    on unknown slots, objectives and blocks.
    """
    config, process = config or DistillConfig(), process or Process()
    if slot not in SLOTS or not objectives or not set(objectives) <= set(LOSSES):
        raise BadInput(f"ablation: slot {slot!r}, objectives {tuple(objectives)}, expected one of {SLOTS}, some of {LOSSES}")
    student = _self_graft(teacher, slot, paper_blocks(teacher.spec.depth) if blocks is None else blocks, seed)
    measure = _measurement(teacher, student, heldout, slot, config, process)
    found = []
    for objective in objectives:
        under = dataclasses.replace(config, **{f"{slot}_loss": objective})
        loop = LoopConfig(config.steps, seed=seed, log_every=log_every)
        taught, _ = distill(teacher, student, batches(), under, loop, process=process, show=show)
        found.append(Ablated(slot, objective, taught, *measure(taught)))
    return found


def _self_graft(teacher: Model, slot: str, blocks: Sequence[int], seed: int) -> Model:
    """The teacher with fresh operators of the kinds that it has, at `blocks` of a slot."""
    kinds: dict[OpSpec, list[Site]] = {}
    for i in blocks:
        if not 0 <= i < teacher.spec.depth:
            raise BadInput(f"ablation: block {i}, expected 0..{teacher.spec.depth - 1}")
        kinds.setdefault(getattr(teacher.spec.blocks[i], slot), []).append(Site(i, slot))
    options: dict[OpSpec, dict[str, Any]] = {op: dict(op.options) for op in kinds}
    edits = [replace(sites, op.kind, **options[op]) for op, sites in kinds.items()]
    return graft(teacher, compose(*edits), jax.random.key(seed))


def _measurement(
    teacher: Model, student: Model, heldout: Batch, slot: str, config: DistillConfig, process: Process
) -> Callable[[Model], tuple[dict[str, float], dict[str, float]]]:
    """A function from a taught student to its held-out losses by objective, and its relative errors by site."""
    sites = scion_sites(student, None)
    prepared = Teacher(teacher.spec, group_units(student.spec, sites), process, config).prepare(teacher.params)
    evaluators = {
        name: heldout_errors(
            teacher.spec, student.spec, sites, process, heldout, dataclasses.replace(config, **{f"{slot}_loss": name})
        )
        for name in LOSSES
    }

    def measure(taught: Model) -> tuple[dict[str, float], dict[str, float]]:
        scions = create_state(taught.spec, taught.params, sites, config).scions
        found = {name: evaluate(scions, prepared) for name, evaluate in evaluators.items()}
        errors = {str(site): found[LOSSES[0]][f"error/{site}"] for site in sites}
        return {name: numbers["loss"] for name, numbers in found.items()}, {"mean": found[LOSSES[0]]["error"], **errors}

    return measure
