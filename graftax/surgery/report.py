"""What an edit did: leaves kept, new and dropped, operators exchanged, parameters and FLOPs before and after."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from graftax.models import Model, param_shapes
from graftax.models.cost import count_params, flops
from graftax.models.stack import Params
from graftax.spec import SLOTS, ModelSpec, Step
from graftax.surgery.check import leaves_by_path
from graftax.surgery.select import Site, compact, ranges


@dataclass(frozen=True)
class Report:
    """The difference between two models. Leaves are named by path, "blocks/07/mixer/qkv/kernel".

    `kept`: the same weights at the same path on both sides. `dropped`: all other leaves of the model before; `new`: all
    others of the model after. A leaf that was initialised afresh is therefore in both. `str` gives a short summary.
    """

    before: ModelSpec
    after: ModelSpec
    kept: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def params(self) -> tuple[int, int]:
        """Number of parameters before and after."""
        return count_params(self.before), count_params(self.after)

    @property
    def flops(self) -> tuple[int, int]:
        """Forward FLOPs per image before and after (`graftax.models.cost.flops`)."""
        return flops(self.before), flops(self.after)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Sites whose operator was exchanged or whose weights are not those of before, in order."""
        sites = [Site(i, slot) for i in range(self.after.depth) for slot in SLOTS]
        return tuple(site for site in sites if self._exchanged(site) or self.new_leaves(site))

    def new_leaves(self, site: Site) -> tuple[str, ...]:
        """New leaves of one site."""
        return tuple(path for path in self.new if path.startswith(f"{site.path}/"))

    def then(self, later: Report) -> Report:
        """This edit followed by `later` as one: a leaf is kept if both kept it; what only lived in between is gone."""
        kept = set(self.kept) & set(later.kept)
        return _report(self.before, {*self.kept, *self.dropped}, later.after, {*later.kept, *later.new}, kept)

    def _exchanged(self, site: Site) -> bool:
        return site.block >= self.before.depth or _operator(self.before, site) != _operator(self.after, site)

    def __str__(self) -> str:
        lines = self._site_lines() or ["operators           unchanged"]
        if self.before.program != self.after.program:
            lines.append(f"{'program':<20}{program_text(self.before.program)} -> {program_text(self.after.program)}")
        lines.append(f"{'leaves':<20}{len(self.kept)} kept, {len(self.new)} new, {len(self.dropped)} dropped")
        lines.append(f"{'parameters':<20}{_change(*self.params)}")
        lines.append(f"{'FLOPs per image':<20}{_change(*self.flops)}")
        return "\n".join(lines)

    def _site_lines(self) -> list[str]:
        """One line for all sites of a slot that went through the same exchange."""
        runs: dict[tuple[str, str], list[Site]] = {}
        for site in self.sites:
            old = str(_operator(self.before, site)) if site.block < self.before.depth else "none"
            weights = "new weights" if self.new_leaves(site) else "weights kept"
            change = f"{old} -> {_operator(self.after, site)}, {weights}"
            runs.setdefault((site.slot, change), []).append(site)
        return [_site_line(slot, change, sites) for (slot, change), sites in runs.items()]


def compare(
    before: tuple[ModelSpec, Params], after: tuple[ModelSpec, Params], same: Callable[[Any, Any], bool] = operator.is_
) -> Report:
    """Report on two (spec, params); two leaves at one path are kept if `same`, by default if they are one object."""
    old, new = leaves_by_path(before[1]), leaves_by_path(after[1])
    kept = {path for path, leaf in old.items() if path in new and same(leaf, new[path])}
    return _report(before[0], set(old), after[0], set(new), kept)


def diff(before: Model | ModelSpec, after: Model | ModelSpec) -> Report:
    """Report on two models: leaves of equal values are kept, wherever they were loaded from.

    Specs have no values: as soon as one side is a spec, leaves of equal shape count as kept.
    """
    if isinstance(before, Model) and isinstance(after, Model):
        return compare((before.spec, before.params), (after.spec, after.params), _equal)
    specs = [side.spec if isinstance(side, Model) else side for side in (before, after)]
    return compare(*[(spec, param_shapes(spec)) for spec in specs], same=operator.eq)  # pyright: ignore


def program_text(program: tuple[Step, ...]) -> str:
    """A program in short: runs of blocks as half-open ranges, "0:3, mean(3:6) x2, 6:8"."""
    parts: list[str] = []
    for plain, group in itertools.groupby(program, key=is_plain):
        steps = list(group)
        parts += [ranges([step.blocks[0] for step in steps])] if plain else map(_step_text, steps)
    return ", ".join(parts)


def is_plain(step: Step) -> bool:
    """True where the step is one block, run once."""
    return len(step.blocks) == 1 and step == Step(step.blocks)


def _step_text(step: Step) -> str:
    loops = f" x{step.loops}" if step.loops != 1 else ""
    alpha = f" alpha={step.alpha:g}" if step.alpha != 1 else ""
    return f"{step.merge}({ranges(step.blocks)}){loops}{alpha}"


def _report(before: ModelSpec, old: set[str], after: ModelSpec, new: set[str], kept: set[str]) -> Report:
    return Report(before, after, *(tuple(sorted(paths)) for paths in (kept, new - kept, old - kept)))


def _operator(spec: ModelSpec, site: Site) -> Any:
    return getattr(spec.blocks[site.block], site.slot)


def _equal(a: Any, b: Any) -> bool:
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and bool(np.array_equal(a, b)))


def _site_line(slot: str, change: str, sites: list[Site]) -> str:
    name = f"blocks[{compact([site.block for site in sites])}].{slot}"
    return f"{name:<19} {change} ({len(sites)} {'site' if len(sites) == 1 else 'sites'})"


def _change(before: int, after: int) -> str:
    return f"{before:,} -> {after:,} ({100 * (after / before - 1):+.2f} %)"
