"""Rewrites of the program: skip, repeat, reverse, shuffle, parallel (Transformer Layers as Painters, arXiv 2407.09298).

A rewrite acts on positions of the program as it stands, not on block ids, so rewrites compose; spans are half-open,
[lo, hi). No weight changes: blocks that no longer run keep theirs.
"""

from __future__ import annotations

import math
import random
import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import jax

from graftax.blocks import block_kind
from graftax.errors import BadInput
from graftax.ops.base import Params
from graftax.spec import ModelSpec, Step
from graftax.surgery.edits import Edit, integer
from graftax.surgery.report import is_plain

Program = tuple[Step, ...]


@dataclass(frozen=True)
class Rewrite(Edit):
    """An edit that only reorders blocks, on a span of the program. `on` says what becomes of a spec.

    Attributes:
        lo: first position of the span.
        hi: the position after its last.
    """

    lo: int
    hi: int

    @abstractmethod
    def changed(self, spec: ModelSpec, span: Program) -> Program:
        """What stands in place of the steps `span`."""

    def on(self, spec: ModelSpec) -> ModelSpec:
        steps = len(spec.program)
        if not 0 <= self.lo < self.hi <= steps:
            raise BadInput(f"span [{self.lo}, {self.hi}) of a program of {steps} steps: expected 0 <= lo < hi <= {steps}")
        span = self.changed(spec, spec.program[self.lo : self.hi])
        program = spec.program[: self.lo] + span + spec.program[self.hi :]
        if not program:
            raise BadInput(f"{self}: leaves no block to run, expected at least one")
        _warn_of_pinned(self, spec, program)
        return spec.replace(program=program)

    def weights(self, spec: ModelSpec, after: ModelSpec, params: Params, rng: jax.Array | None) -> Params:
        return params

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.lo, self.hi), {}


def _warn_of_pinned(edit: Edit, spec: ModelSpec, program: Program) -> None:
    """Warn where a block leaves the end that its kind was trained for: allowed, and of little sense."""
    for i in spec.program[-1].blocks:
        reason = block_kind(spec.blocks[i].kind).pinned
        if reason and i not in program[-1].blocks and any(i in step.blocks for step in program):
            warnings.warn(f"{edit}: moves block {i} from the end: {reason}", stacklevel=2)


@dataclass(frozen=True)
class Skip(Rewrite):
    """See `skip`."""

    name = "skip"

    def changed(self, spec: ModelSpec, span: Program) -> Program:
        return ()


@dataclass(frozen=True)
class Repeat(Rewrite):
    """See `repeat`.

    Attributes:
        block: that runs, None for the middle step's.
    """

    block: int | None = None
    name = "repeat"

    def changed(self, spec: ModelSpec, span: Program) -> Program:
        step = spec.program[len(spec.program) // 2] if self.block is None else Step((self.block,))
        return (step,) * len(span)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.lo, self.hi), {} if self.block is None else {"block": self.block}


@dataclass(frozen=True)
class Reverse(Rewrite):
    """See `reverse`."""

    name = "reverse"

    def changed(self, spec: ModelSpec, span: Program) -> Program:
        return span[::-1]


@dataclass(frozen=True)
class RandomOrder(Rewrite):
    """See `random_order`.

    Attributes:
        seed: of Python's generator.
    """

    seed: int
    name = "random_order"

    def changed(self, spec: ModelSpec, span: Program) -> Program:
        steps = list(span)
        random.Random(self.seed).shuffle(steps)
        return tuple(steps)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.lo, self.hi), {"seed": self.seed}


@dataclass(frozen=True)
class Parallel(Rewrite):
    """See `parallel`.

    Attributes:
        loops: how often the step runs.
        alpha: factor of its change.
    """

    loops: int = 1
    alpha: float = 1.0
    name = "parallel"

    def changed(self, spec: ModelSpec, span: Program) -> Program:
        if nested := [step for step in span if not is_plain(step)]:
            what = "is parallel, looped or scaled already, expected plain blocks"
            raise BadInput(f"parallel({self.lo}, {self.hi}): {nested[0]} {what}")
        return (Step(tuple(step.blocks[0] for step in span), "mean", self.loops, self.alpha),)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.lo, self.hi), {"loops": self.loops, "alpha": self.alpha}


def painters_span(depth: int, start: int) -> tuple[int, int]:
    """The paper's middle span (start + 1, depth - start): positions 0..start and the last `start` stay in place.

    This is the official code's convention, M = depth - 2 start - 1 positions. Raises `BadInput` where M < 1.
    """
    lo, hi = start + 1, depth - start
    if start < 0 or lo >= hi:
        raise BadInput(f"painters_span: start {start} of {depth} blocks leaves no middle, expected 0..{(depth - 2) // 2}")
    return lo, hi


def skip(lo: int, hi: int) -> Skip:
    """Leave out positions [lo, hi). Refuses to leave out the whole program."""
    return Skip(*_span("skip", lo, hi))


def repeat(lo: int, hi: int, block: int | None = None) -> Repeat:
    """Run one block hi - lo times in place of positions [lo, hi): the middle position's, or block id `block`.

    The paper's "middle repeat" takes the step at position floor(T / 2) of the T steps.
    """
    return Repeat(*_span("repeat", lo, hi), None if block is None else integer("repeat", block))


def reverse(lo: int, hi: int) -> Reverse:
    """Run positions [lo, hi) in reverse order. `reverse(s, s + 2)` switches two neighbours."""
    return Reverse(*_span("reverse", lo, hi))


def random_order(lo: int, hi: int, seed: int) -> RandomOrder:
    """Run positions [lo, hi) in an order drawn from `seed`, with Python's generator as in the paper's code."""
    return RandomOrder(*_span("random_order", lo, hi), integer("random_order", seed))


def parallel(lo: int, hi: int, loops: int = 1, alpha: float = 1.0) -> Parallel:
    """Run positions [lo, hi) on one input and average their outputs: x + alpha * mean_i(f_i(x) - x), `loops` times.

    alpha 1 is the paper; alpha = hi - lo adds the updates up. Positions that are themselves parallel, looped or scaled
    are refused.
    """
    if not (isinstance(alpha, int | float) and math.isfinite(alpha)):
        raise BadInput(f"parallel: alpha {alpha!r}, expected a finite number")
    return Parallel(*_span("parallel", lo, hi), integer("parallel", loops), float(alpha))


def looped_parallel(lo: int, hi: int, loops: int = 3) -> Parallel:
    """`parallel` applied `loops` times, the average fed back to all blocks; the paper's headline is 3."""
    return parallel(lo, hi, loops)


def _span(name: str, lo: int, hi: int) -> tuple[int, int]:
    return integer(name, lo), integer(name, hi)
