"""Edits of depth: pairs of blocks in parallel with a learned merge, blocks left out,
perhaps for a neighbour to do their work, blocks that share weights.

Unlike the rewrites of `graftax.surgery.program` these change the parameters: projections come in, blocks go for good and
those that stay are numbered anew.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from graftax.errors import BadInput, did_you_mean
from graftax.models.merge import MERGES, mean_merge
from graftax.ops.base import Params
from graftax.spec import ModelSpec, Step
from graftax.surgery.edits import Edit, integer
from graftax.surgery.report import Report, is_plain
from graftax.surgery.select import Site, all_sites

Program = tuple[Step, ...]
HEALERS = ("before", "behind")
"""Who may learn what a span of dropped blocks did: its neighbour on either side."""


@dataclass(frozen=True)
class ParallelPairs(Edit):
    """See `parallel_pairs`.

    Attributes:
        lo: first position that is paired.
        hi: the position after the last, None for the end.
    """

    lo: int = 0
    hi: int | None = None
    name = "parallel_pairs"

    def on(self, spec: ModelSpec) -> ModelSpec:
        steps = self._pairs(spec)
        return spec.replace(program=spec.program[: self.lo] + steps + spec.program[self.lo + 2 * len(steps) :])

    def weights(self, spec: ModelSpec, after: ModelSpec, params: Params, rng: jax.Array | None) -> Params:
        fresh = {after.merge_key(step.blocks): mean_merge(spec, 2) for step in self._pairs(spec)}
        return {**params, MERGES: {**params.get(MERGES, {}), **fresh}}

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((self.lo,) if self.lo or self.hi is not None else ()) + (() if self.hi is None else (self.hi,)), {}

    def _pairs(self, spec: ModelSpec) -> Program:
        end = len(spec.program) if self.hi is None else self.hi
        steps = spec.program[self.lo : end]
        if not 0 <= self.lo < end <= len(spec.program) or len(steps) % 2:
            where = f"positions [{self.lo}, {end}) of {len(spec.program)}"
            raise BadInput(f"{self}: {where}, expected an even number of steps inside")
        if nested := [step for step in steps if not is_plain(step)]:
            raise BadInput(f"{self}: {nested[0]} is parallel, looped or scaled already, expected plain blocks")
        pairs = [(first.blocks[0], second.blocks[0]) for first, second in zip(steps[::2], steps[1::2], strict=True)]
        if taken := [pair for pair in pairs if pair in spec.merges or pairs.count(pair) > 1]:
            raise BadInput(f"{self}: blocks {taken[0]} would run as a pair twice, expected each pair once")
        return tuple(Step(pair, "project") for pair in pairs)


class _Fewer(Edit):
    """An edit after which some blocks are gone."""

    @abstractmethod
    def gone(self) -> Collection[int]:
        """The blocks that are taken out."""

    @abstractmethod
    def program(self, spec: ModelSpec) -> Program:
        """The program without them, in the old numbers."""

    def touched(self) -> Collection[int]:
        """All blocks that the edit speaks of."""
        return self.gone()

    def origin(self, spec: ModelSpec) -> tuple[int, ...]:
        return tuple(i for i in range(spec.depth) if i not in self.gone())

    def on(self, spec: ModelSpec) -> ModelSpec:
        _check(str(self), spec, self.touched())
        kept, program = self.origin(spec), self.program(spec)
        number = {old: new for new, old in enumerate(kept)}
        steps = tuple(dataclasses.replace(step, blocks=tuple(number[i] for i in step.blocks)) for step in program)
        return spec.replace(blocks=tuple(spec.blocks[i] for i in kept), program=steps)

    def weights(self, spec: ModelSpec, after: ModelSpec, params: Params, rng: jax.Array | None) -> Params:
        kept = self.origin(spec)
        number = {old: new for new, old in enumerate(kept)}
        blocks = {after.block_key(number[i]): params["blocks"][spec.block_key(i)] for i in kept}
        merges = {after.merge_key(number[i] for i in ids): params[MERGES][spec.merge_key(ids)] for ids in spec.merges}
        return {**params, "blocks": blocks, **({MERGES: merges} if merges else {})}


@dataclass(frozen=True)
class Drop(_Fewer):
    """See `drop`.

    Attributes:
        blocks: that are taken out.
        heal: which neighbour of each span of them is to stand for it, one of `HEALERS`; "" none.
    """

    blocks: tuple[int, ...]
    heal: str = ""
    name = "drop"

    def gone(self) -> Collection[int]:
        return self.blocks

    def on(self, spec: ModelSpec) -> ModelSpec:
        self.healers(spec.depth)
        return super().on(spec)

    def healers(self, depth: int) -> dict[int, tuple[int, ...]]:
        """By block that is to heal, the blocks that it then stands for, in order and itself among them, in the numbers of
        the model before, which has `depth` blocks. Raises `BadInput` where a span has no neighbour on that side."""
        gone = sorted(set(self.blocks)) if self.heal else []
        starts = [i for i in gone if i - 1 not in gone]
        ends = [i for i in gone if i + 1 not in gone]
        found = {}
        for lo, hi in zip(starts, ends, strict=True):
            healer = lo - 1 if self.heal == "before" else hi + 1
            if not 0 <= healer < depth:
                raise BadInput(f"{self}: no block {self.heal} blocks {lo}..{hi} of {depth}, expected one that heals")
            found[healer] = tuple(range(min(lo, healer), max(hi, healer) + 1))
        return found

    def scions(self, spec: ModelSpec, report: Report, held: Iterable[Site]) -> set[Site]:
        healers = {self.origin(spec).index(block) for block in self.healers(spec.depth)}
        trained = {site for site in all_sites(report.after) if site.block in healers}
        with_weights = {site for site in trained if any(p.startswith(f"{site.path(report.after)}/") for p in report.kept)}
        return super().scions(spec, report, held) | with_weights

    def program(self, spec: ModelSpec) -> Program:
        left = [tuple(i for i in step.blocks if i not in self.blocks) for step in spec.program]
        program = tuple(dataclasses.replace(s, blocks=ids) for s, ids in zip(spec.program, left, strict=True) if ids)
        if not program:
            raise BadInput(f"{self}: leaves no block to run, expected at least one")
        return program

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.blocks, {"heal": self.heal} if self.heal else {}


@dataclass(frozen=True)
class Tie(_Fewer):
    """See `tie`.

    Attributes:
        groups: of blocks that share the weights of their first.
    """

    groups: tuple[tuple[int, ...], ...]
    name = "tie"

    def gone(self) -> Collection[int]:
        return [block for group in self.groups for block in group[1:]]

    def touched(self) -> Collection[int]:
        return [block for group in self.groups for block in group]

    def program(self, spec: ModelSpec) -> Program:
        stands_for = {block: group[0] for group in self.groups for block in group}
        ids = [tuple(stands_for.get(i, i) for i in step.blocks) for step in spec.program]
        return tuple(dataclasses.replace(step, blocks=b) for step, b in zip(spec.program, ids, strict=True))

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.groups, {}


def parallel_pairs(lo: int = 0, hi: int | None = None) -> ParallelPairs:
    """Run positions lo and lo + 1 of the program on one input, lo + 2 and lo + 3, and so on up to `hi` (None: the end).

    Each pair's outputs, concatenated, go through a projection of its own (2 width -> width), which starts as their mean:
    half the change that the two blocks made one after the other. `graftax.distill` fits it to that change and then trains
    the pairs. Halves the depth; DiT-XL/2 goes from 675.1 to 712.3 M parameters. Source: the parallel blocks of the
    grafting paper (arXiv 2506.05340). Raises `BadInput`, when it runs, on spans that are no whole number of pairs, on
    positions that are parallel or looped already, and on a pair that has a projection elsewhere.
    """
    return ParallelPairs(integer("parallel_pairs", lo), None if hi is None else integer("parallel_pairs", hi))


def drop(*blocks: int, heal: str = "") -> Drop:
    """Take blocks out of the model, parameters and all; the others move up and the program goes on without them.

    `heal`: the block "before" every span of dropped blocks, or "behind" it, is to do what the span did beside its own work:
    `graftax.distill` trains the whole of it to, as Flux.1-lite was made (Freepik: doubles 5 to 15 of Flux-dev out, double 4
    taught to reach what 15 put out). It counts among the model's scions.

    Parallel steps lose these blocks; what their merge does with the others stays. Raises `BadInput` on another `heal`; when
    it runs, if nothing would be left to run, on blocks that do not exist, on blocks of a step with a learned projection, on
    models with adapters, and on spans that have no such neighbour.
    """
    if heal not in ("", *HEALERS):
        raise BadInput(f"drop: heal {heal!r}, expected one of {HEALERS}{did_you_mean(heal, HEALERS)}")
    return Drop(tuple(integer("drop", block) for block in blocks), heal)


def tie(*groups: Sequence[int]) -> Tie:
    """Let the blocks of each group share the weights of its first, which runs in place of the others: `tie((3, 4, 5))`.

    The others are taken out, and what stays is numbered anew. Raises `BadInput` on groups of fewer than two blocks and on
    blocks in two groups; when it runs, on blocks that do not exist, on blocks of a step with a learned projection, and on
    models with adapters.
    """
    if not all(isinstance(group, Sequence) for group in groups):
        raise BadInput(f"tie: got {groups}, expected groups of blocks, like tie((3, 4, 5))")
    edit = Tie(tuple(tuple(integer("tie", block) for block in group) for group in groups))
    touched = edit.touched()
    if any(len(group) < 2 for group in edit.groups) or len(set(touched)) < len(touched):
        raise BadInput(f"{edit}: expected groups of two or more blocks, each block in one group")
    return edit


def healers(edits: Sequence[Edit], depth: int) -> dict[int, tuple[int, ...]]:
    """By block that heals, in a model of `depth` blocks that `edits` led to, the blocks that it stands for in the model
    before all of them (`Drop.healers`)."""
    found: dict[int, tuple[int, ...]] = {}
    now = {i: i for i in range(depth)}  # the number that every block of the last model had after the edit at hand
    for edit in reversed(edits):
        if not isinstance(edit, _Fewer):
            continue
        depth += len(set(edit.gone()))
        kept = [i for i in range(depth) if i not in edit.gone()]
        now = {block: kept[i] for block, i in now.items()}
        found = {block: tuple(kept[i] for i in span) for block, span in found.items()}
        spans = edit.healers(depth) if isinstance(edit, Drop) else {}
        for block, i in now.items():
            if i in spans:
                found[block] = tuple(sorted({*found.get(block, ()), *spans[i]}))
    return found


def _check(text: str, spec: ModelSpec, blocks: Collection[int]) -> None:
    if not blocks:
        raise BadInput(f"{text}: got no blocks, expected at least one")
    if outside := [i for i in blocks if not 0 <= i < spec.depth]:
        raise BadInput(f"{text}: block {outside[0]}, expected 0..{spec.depth - 1}")
    if merged := [ids for ids in spec.merges if set(ids) & set(blocks)]:
        raise BadInput(f"{text}: blocks {merged[0]} share a learned projection, expected blocks outside of such steps")
    if spec.adapters:
        raise BadInput(f"{text}: the model has adapters, expected merge_lora() first")
