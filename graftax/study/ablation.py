"""The ablation of an analysis: every objective on every slot and seed, kept as soon as it is measured."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftax import config as configs
from graftax.analyze import objective_ablation
from graftax.analyze.harm import Harm
from graftax.checkpoint.files import replacing, sha256_of_arrays
from graftax.data.pixels import images
from graftax.distill.losses import LOSSES
from graftax.errors import BadInput
from graftax.models import Model
from graftax.progress import say
from graftax.study import examiners
from graftax.study.config import DemoConfig, Judging, Recipe

PARTIAL = "ablation-partial.json"
"""Measured so far, beside the analysis; gone once that is whole."""

Part = dict[str, Any]
Score = Callable[[Model], Part]


@dataclass(frozen=True, eq=False)
class Ablation:
    """What to do. Raises `BadInput` where no image is held out to measure on.

    Attributes:
        recipe: whose stage 1 it is.
        data: that it learns from.
        slots: which operators are taught.
        blocks: where, None for where the paper's layers are.
        seeds: how often.
    """

    recipe: Recipe
    data: images.Images
    slots: tuple[str, ...]
    blocks: tuple[int, ...] | None
    seeds: int

    def __post_init__(self) -> None:
        if not self.data.held_out:
            raise BadInput("ablation: no held-out images, expected some: --config.data.held_out=0.1")

    def identity(self, teacher: Model) -> str:
        """Twelve hex digits that change with everything that its numbers depend on, but slots and seeds."""
        tree = [configs.as_tree(self.recipe), self.blocks, teacher.spec.to_json(), sha256_of_arrays(teacher.params)]
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def measure(teacher: Model, ablation: Ablation, folder: Path) -> Part:
    """Self-grafts of chosen layers under each objective, plugged in as they are after stage 1.

    Quality is the relative error of the whole model's output on held-out data, and the judge's scores where the data are
    images that it knows. What `folder` holds of an interrupted ablation of the same settings is not measured again.
    """
    recipe = ablation.recipe
    score = _judge(recipe.judging, ablation.data) if isinstance(recipe, DemoConfig) else None
    identity = ablation.identity(teacher)
    lines = _read(folder / PARTIAL, identity)
    done = {(line["slot"], line["seed"]) for line in lines}
    for seed, slot in itertools.product(range(ablation.seeds), ablation.slots):
        say(f"--- {slot} operators, seed {seed}: {', '.join(LOSSES)}{', done' * ((slot, seed) in done)}")
        if (slot, seed) not in done:
            lines += _lines(teacher, ablation, slot, seed, score)
            with replacing(folder / PARTIAL) as temporary:
                temporary.write_text(json.dumps({"identity": identity, "lines": lines}) + "\n")
    stage = ablation.recipe.distill
    return {
        "lines": lines,
        "teacher": score(teacher) if score else {},
        "steps": stage.settings.steps,
        "batch": stage.batch_size,
        "slots": list(ablation.slots),
    }


def _lines(teacher: Model, ablation: Ablation, slot: str, seed: int, score: Score | None) -> list[Part]:
    """What became of one slot with one seed under each objective, all from the same start on the same batches."""
    data, stage = ablation.data, ablation.recipe.distill
    heldout = data.heldout or {}
    found = objective_ablation(
        teacher, lambda: data.batches(stage.batch_size, stage.seed + seed), heldout, stage.settings,
        slot=slot, blocks=ablation.blocks, seed=stage.seed + seed, log_every=stage.log_every,
    )  # fmt: skip
    lines = []
    for one in found:
        sites = [site for site in one.errors if site != "mean"]
        harm = Harm(teacher, one.student, heldout)
        line = {"slot": slot, "seed": seed, "objective": one.objective, "sites": sites, "losses": one.losses}
        line |= {"error": one.errors["mean"], "output error": harm(harm.sites)}
        lines.append({**line, **(score(one.student) if score else {})})
    return lines


def _judge(judging: Judging, data: images.Images) -> Score:
    examiner = examiners.kind_of(data.config)(judging, data)
    return lambda model: examiner.score(examiner.draw(model)).record()


def _read(path: Path, identity: str) -> list[Part]:
    """Lines of an interrupted ablation of this identity, [] where there is none."""
    try:
        record = json.loads(path.read_text()) if path.exists() else {"identity": identity, "lines": []}
        return record["lines"] if record["identity"] == identity else []
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: {error!r}, expected part of an ablation; remove it to start over") from None
