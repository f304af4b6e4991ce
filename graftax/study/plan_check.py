"""How well harm foretells what fine-tuning leaves: the grafts that a plan considered go through both stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from graftax.errors import BadInput
from graftax.study import sweep
from graftax.study.config import ExperimentConfig, Judging, Recipe, SweepConfig, Variant
from graftax.study.plan import Plan


@dataclass(frozen=True)
class Checked:
    """Predicted harm beside what fine-tuning left.

    Attributes:
        names: of the grafts.
        harm: predicted.
        losses: held out, after stage 2, mean over seeds.
        scores: what the judge ranks by, likewise.
        ranked: what that is called.
        seeds: how many.
        steps: of stage 1 and of stage 2.
    """

    names: tuple[str, ...]
    harm: tuple[float, ...]
    losses: tuple[float, ...]
    scores: tuple[float, ...]
    ranked: str
    seeds: int
    steps: tuple[int, int]

    def __str__(self) -> str:
        loss, score = (rank_correlation(self.harm, values) for values in (self.losses, self.scores))
        rows = sorted(zip(self.harm, self.names, self.losses, self.scores, strict=True))
        lines = [f"{name}: harm {harm:.4f}, held-out loss {v:.4f}, {self.ranked} {s:.4g}" for harm, name, v, s in rows]
        about = f"{len(self.names)} grafts, {self.seeds} seeds, {self.steps[0]} + {self.steps[1]} steps"
        last = f"Rank correlation of harm with the loss {loss:.2f}, with {self.ranked} {score:.2f} ({about})."
        return "\n".join([*lines, last])


def check(found: Plan, recipe: Recipe, seeds: int, folder: Path) -> Checked:
    """Take every graft that `found` considered through the stages of a recipe, as `graftax sweep` does; `folder` keeps its
    records, and the same call continues. Raises `BadInput` where there are too few grafts to rank."""
    unlike = {one.edits: one for one in found.considered}
    if len(unlike) < 3:
        raise BadInput(f"plan check: {len(unlike)} grafts reach the goal, expected 3 or more to rank")
    grafts = {f"{number} {one.name}": one for number, one in enumerate(unlike.values(), 1)}
    shared: dict[str, Any] = {f.name: getattr(recipe, f.name) for f in fields(ExperimentConfig)}
    shared |= {"workdir": str(folder), "kind": "sweep"}
    judging: Judging = getattr(recipe, "judging", Judging())
    variants = {name: Variant(edits=one.edits) for name, one in grafts.items()}
    done = sweep.run(SweepConfig(**shared, variants=variants, seeds=tuple(range(seeds)), judging=judging), folder)
    ranked = done.examiner.ranked
    whole = [name for name in grafts if not any(run.failure for run in done.runs if run.variant == name)]
    runs = {name: [run for run in done.runs if run.variant == name] for name in whole}
    return Checked(
        tuple(whole), tuple(grafts[name].harm for name in whole),
        tuple(fmean(run.losses[-1] for run in runs[name]) for name in whole),
        tuple(fmean(run.scores[-1][ranked] for run in runs[name]) for name in whole),
        ranked.title, seeds, (recipe.distill.settings.steps, recipe.finetune.loop.steps),
    )  # fmt: skip


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's: that of the ranks, equal values sharing theirs; 0 where all are equal."""
    x, y = (_ranks(np.asarray(values, float)) for values in (a, b))
    spread = x.std() * y.std()
    return float(((x - x.mean()) * (y - y.mean())).mean() / spread) if spread else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    below = (values[:, None] > values).sum(1)
    return below + ((values[:, None] == values).sum(1) - 1) / 2
