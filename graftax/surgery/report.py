"""What an edit did: leaves kept, new and dropped, operators exchanged, parameters and FLOPs before and after."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graftax.models import Model, param_shapes
from graftax.models.cost import count_params, flops
from graftax.ops.base import CHANGED, FITTED, KEPT, Params
from graftax.spec import ModelSpec, OpSpec, Step
from graftax.surgery.check import leaves_by_path
from graftax.surgery.select import Site, all_sites, compact, ranges

EFFECTS = {
    KEPT: "kept", FITTED: "fitted in closed form, distillation refines it", CHANGED: "changed, needs distillation",
}  # fmt: skip
"""What an edit does to the function (`graftax.ops.base`), the best first, and in words."""

_NUMBERED = re.compile(r"(?P<part>blocks|merges)/(?P<numbers>\d+(?:_\d+)*)")


@dataclass(frozen=True)
class Report:
    """The difference between two models. Leaves are named by path, "blocks/07/mixer/qkv/kernel"; `str` is a short summary.

    Attributes:
        before: what the model was.
        after: what it is.
        kept: leaves with the same weights at the same path on both sides (that of after, where blocks got other numbers).
        new: all others of the model after; a leaf that was initialised afresh is in both.
        dropped: all others of the model before.
        origin: origin[i] is the number that block i had before.
        effect: what the edit did to the function, one of `EFFECTS`; "" where no edit says so.
    """

    before: ModelSpec
    after: ModelSpec
    kept: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    origin: tuple[int, ...]
    effect: str = field(default="", compare=False)

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
        """Sites whose operator was exchanged or whose weights are not those of before, in order.

        Adapters that were folded into an operator do not make it another.
        """
        return tuple(site for site in all_sites(self.after) if self._exchanged(site) or self.new_leaves(site))

    def new_leaves(self, site: Site) -> tuple[str, ...]:
        """New leaves of one site, without kernels that an adapter was folded into."""
        folded = {adapter.path for adapter in self.before.adapters} - {adapter.path for adapter in self.after.adapters}
        return tuple(path for path in self.new if path.startswith(f"{site.path(self.after)}/") and path not in folded)

    def then(self, later: Report) -> Report:
        """This edit followed by `later` as one: a leaf is kept if both kept it; what only lived in between is gone."""
        old = {*(_path_before(path, self.before, self.origin) for path in self.kept), *self.dropped}
        kept = {path for path in later.kept if _path_before(path, later.before, later.origin) in self.kept}
        origin = tuple(self.origin[i] for i in later.origin if i < len(self.origin))
        effect = worst(self.effect, later.effect)
        return _report(self.before, old, later.after, {*later.kept, *later.new}, kept, origin, effect)

    def moved(self, sites: Iterable[Site]) -> set[Site]:
        """Where sites of the model before are in the model after, without those that are gone."""
        return {Site(new, site.slot) for site in sites for new, old in enumerate(self.origin) if old == site.block}

    def _old_operator(self, site: Site) -> OpSpec | None:
        """What a site of the model after held before; None for a block that was not there."""
        known = site.block < len(self.origin)
        return dict(self.before.blocks[self.origin[site.block]].ops).get(site.slot) if known else None

    def _exchanged(self, site: Site) -> bool:
        return self._old_operator(site) != site.held(self.after)

    def __str__(self) -> str:
        return self.text()

    def text(self, *, trained: bool = False) -> str:
        """The summary. `trained`: nothing was edited between the two models, so weights that differ were trained."""
        lines = self._site_lines(trained) or ["operators           unchanged"]
        if self.before.program != self.after.program:
            lines.append(f"{'program':<20}{program_text(self.before.program)} -> {program_text(self.after.program)}")
        if self.before.adapters != self.after.adapters:
            lines.append(f"{'adapters':<20}{len(self.before.adapters)} -> {len(self.after.adapters)}")
        changed = f"{len(self.new)} retrained" if trained else f"{len(self.new)} new, {len(self.dropped)} dropped"
        lines.append(f"{'leaves':<20}{len(self.kept)} kept, {changed}")
        lines.append(f"{'parameters':<20}{_change(*self.params)}")
        lines.append(f"{'FLOPs per image':<20}{_change(*self.flops)}")
        if self.effect:
            lines.append(f"{'function':<20}{EFFECTS[self.effect]}")
        return "\n".join(lines)

    def _site_lines(self, trained: bool) -> list[str]:
        """One line for all sites of a slot that went through the same exchange."""
        runs: dict[tuple[str, str], list[Site]] = {}
        for site in self.sites:
            weights = "new weights" if self.new_leaves(site) else "weights kept"
            change = f"{self._old_operator(site) or 'none'} -> {site.held(self.after)}, {weights}"
            change = f"{site.held(self.after)}, retrained" if trained else change
            runs.setdefault((site.slot, change), []).append(site)
        return [_site_line(slot, change, sites) for (slot, change), sites in runs.items()]


def compare(
    before: tuple[ModelSpec, Params], after: tuple[ModelSpec, Params], same: Callable[[Any, Any], bool] = operator.is_, *,
    origin: tuple[int, ...] | None = None, effect: str = "",
) -> Report:  # fmt: skip
    """Report on two (spec, params); two leaves at one path are kept if `same`, by default if they are one object.

    `origin`: the numbers that the blocks of `after` had before, None where no block has another number. `effect` goes into
    the report.
    """
    origin = tuple(range(min(before[0].depth, after[0].depth))) if origin is None else origin
    old, new = leaves_by_path(before[1]), leaves_by_path(after[1])
    paths = {path: _path_before(path, before[0], origin) for path in new}
    kept = {path for path, leaf in new.items() if paths[path] in old and same(old[paths[path]], leaf)}
    return _report(before[0], set(old), after[0], set(new), kept, origin, effect)


def worst(*effects: str) -> str:
    """What several edits together do to the function; "" where one does not say."""
    return "" if "" in effects else max(effects, key=list(EFFECTS).index)


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


def _path_before(path: str, before: ModelSpec, origin: tuple[int, ...]) -> str:
    """The path that a leaf had before its block was numbered anew; "" where the block was not there."""
    place = _NUMBERED.match(path)
    if place is None:
        return path
    blocks = [int(number) for number in place["numbers"].split("_")]
    if max(blocks) >= len(origin):
        return ""
    return f"{place['part']}/{before.merge_key(origin[i] for i in blocks)}{path[place.end() :]}"


def _report(
    before: ModelSpec, old: set[str], after: ModelSpec, new: set[str], kept: set[str], origin: tuple[int, ...], effect: str
) -> Report:
    gone = old - {_path_before(path, before, origin) for path in kept}
    return Report(before, after, tuple(sorted(kept)), tuple(sorted(new - kept)), tuple(sorted(gone)), origin, effect)


def _equal(a: Any, b: Any) -> bool:
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and bool(np.array_equal(a, b)))


def _site_line(slot: str, change: str, sites: list[Site]) -> str:
    name = f"blocks[{compact([site.block for site in sites])}].{slot}"
    return f"{name:<19} {change} ({len(sites)} {'site' if len(sites) == 1 else 'sites'})"


def _change(before: int, after: int) -> str:
    return f"{before:,} -> {after:,} ({100 * (after / before - 1):+.2f} %)"
