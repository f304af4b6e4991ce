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

from graftax.blocks import slot_of, tapped_slots
from graftax.diffusion import Noising
from graftax.distill import DistillConfig, create_state, distill
from graftax.distill.groups import group_units
from graftax.distill.heldout import heldout_errors
from graftax.distill.losses import LOSSES
from graftax.distill.sites import scion_sites
from graftax.distill.teacher import Teacher
from graftax.errors import BadInput
from graftax.models import Model
from graftax.spec import ModelSpec, members
from graftax.surgery import Site, compose, graft, replace
from graftax.train.loop import Batch
from graftax.train.loop_config import LoopConfig
from graftax.train.noising import noising_for

PAPER_SHARES = (0 / 27, 7 / 27, 16 / 27, 26 / 27, 1.0)
"""Where in the depth the paper's layers 1, 8, 17, 27 and 28 of 28 are."""


@dataclass(frozen=True, eq=False)
class Ablated:
    """One objective on one slot: the student as stage 1 left it, and its held-out numbers.

    Attributes:
        slot: that was grafted.
        objective: that was trained on.
        student: the model with the taught scions.
        losses: mean over sites of every objective, by name, whatever was trained on.
        errors: relative error ||prediction - target|| / ||target|| by site, and "mean".
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
    teacher: Model, batches: Callable[[], Any], heldout: Batch, config: DistillConfig | None = None, *,
    slot: str = "mixer", blocks: Sequence[int] | None = None, objectives: Sequence[str] = LOSSES, seed: int = 0,
    log_every: int = 50, process: Noising | None = None, show: bool = True,
) -> list[Ablated]:  # fmt: skip
    """Graft `blocks` of one slot onto themselves and teach them under each of `objectives`, all else equal.

    Every objective starts from the same random weights (`seed`) and sees the same batches, times and noise: `batches()`
    gives afresh what `graftax.distill.distill` takes, batches of image (b, h, w, c), label (b,). `config` is that of stage
    1, by default the paper's; its loss of the slot is overruled. heldout: image (n, h, w, c), label (n,). `slot`: by name,
    any that stage 1 can teach. `blocks`: by default those of `paper_blocks` among the blocks with this slot. Raises
    `BadInput` on unknown slots, objectives and blocks.
    """
    config, process, spec = config or DistillConfig(), noising_for(teacher.spec, process), teacher.spec
    slots = tapped_slots(spec)
    if slot not in slots or not objectives or not set(objectives) <= set(LOSSES):
        raise BadInput(f"ablation: slot {slot!r}, objectives {tuple(objectives)}, expected one of {slots}, some of {LOSSES}")
    sites = _sites(spec, slot, blocks)
    student = _self_graft(teacher, sites, seed)
    under = {name: _with_loss(spec, sites[0], config, name) for name in LOSSES}
    measure = _measurement(teacher, student, heldout, under, process)
    found = []
    for objective in objectives:
        loop = LoopConfig(config.steps, seed=seed, log_every=log_every)
        taught, _ = distill(teacher, student, batches(), under[objective], loop, process=process, show=show)
        found.append(Ablated(slot, objective, taught, *measure(taught)))
    return found


def _sites(spec: ModelSpec, slot: str, blocks: Sequence[int] | None) -> list[Site]:
    """The slot in `blocks`, by default where the paper's layers are among those that have it."""
    holders = [i for i, block in enumerate(spec.blocks) if slot in block.slots]
    chosen = [holders[place] for place in paper_blocks(len(holders))] if blocks is None else blocks
    if unknown := [i for i in chosen if i not in holders]:
        raise BadInput(f"ablation: block {unknown[0]}, expected some of {holders}, which have the slot {slot!r}")
    return [Site(i, slot) for i in chosen]


def _self_graft(teacher: Model, sites: Sequence[Site], seed: int) -> Model:
    """The teacher with fresh operators of the kinds that it has at `sites`."""
    kinds = members(site.held(teacher.spec) for site in sites)
    edits = [replace([sites[k] for k in places], op, init="random") for op, places in kinds.items()]
    return graft(teacher, compose(*edits), jax.random.key(seed))


def _with_loss(spec: ModelSpec, site: Site, config: DistillConfig, name: str) -> DistillConfig:
    """`config` that teaches operators of the site's role with the loss called `name`."""
    role = slot_of(spec.blocks[site.block].kind, site.slot).role
    return dataclasses.replace(config, **{"mlp_loss" if role == "channel" else "mixer_loss": name})


def _measurement(
    teacher: Model, student: Model, heldout: Batch, under: dict[str, DistillConfig], process: Noising
) -> Callable[[Model], tuple[dict[str, float], dict[str, float]]]:
    """A function from a taught student to its held-out losses by objective, and its relative errors by site.

    `under`: stage 1's settings by objective.
    """
    sites, config = scion_sites(student, None), under[LOSSES[0]]
    prepared = Teacher(teacher.spec, group_units(student.spec, sites), process, config).prepare(teacher.params)
    evaluators = {
        name: heldout_errors(teacher.spec, student.spec, sites, process, heldout, one) for name, one in under.items()
    }

    def measure(taught: Model) -> tuple[dict[str, float], dict[str, float]]:
        scions = create_state(taught.spec, taught.params, sites, config).scions
        found = {name: evaluate(scions, prepared) for name, evaluate in evaluators.items()}
        errors = {str(site): found[LOSSES[0]][f"error/{site}"] for site in sites}
        return {name: numbers["loss"] for name, numbers in found.items()}, {"mean": found[LOSSES[0]]["error"], **errors}

    return measure
