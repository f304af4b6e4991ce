"""Rewrites of the program: skip, repeat, reverse, shuffle, parallel (Transformer Layers as Painters, arXiv 2407.09298).

A rewrite acts on positions of the program as it stands, not on block ids, so rewrites compose; spans are half-open,
[lo, hi). No weight changes: blocks that no longer run keep theirs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import jax

from graftax.errors import BadInput
from graftax.models.stack import Params
from graftax.spec import ModelSpec, Step
from graftax.surgery.edits import Edit, Result
from graftax.surgery.report import compare, is_plain

Program = tuple[Step, ...]


@dataclass(frozen=True)
class Rewrite(Edit):
    """An edit that only reorders blocks. `on` is the same change on the spec alone: `skip(3, 5).on(spec)`."""

    on: Callable[[ModelSpec], ModelSpec]


def painters_span(depth: int, start: int) -> tuple[int, int]:
    """The paper's middle span (start + 1, depth - start): positions 0..start and the last `start` stay in place.

    This is the official code's convention, M = depth - 2 start - 1 positions. Raises `BadInput` where M < 1.
    """
    lo, hi = start + 1, depth - start
    if start < 0 or lo >= hi:
        raise BadInput(f"painters_span: start {start} of {depth} blocks leaves no middle, expected 0..{(depth - 2) // 2}")
    return lo, hi


def skip(lo: int, hi: int) -> Rewrite:
    """Leave out positions [lo, hi). Refuses to leave out the whole program."""
    return _on_span(f"skip({lo}, {hi})", lo, hi, lambda program: ())


def repeat(lo: int, hi: int, block: int | None = None) -> Rewrite:
    """Run one block hi - lo times in place of positions [lo, hi): the middle position's, or block id `block`.

    The paper's "middle repeat" takes the step at position floor(T / 2) of the T steps.
    """

    def rewrite(spec: ModelSpec) -> Program:
        _check_span(spec, lo, hi)
        step = spec.program[len(spec.program) // 2] if block is None else Step((block,))
        return spec.program[:lo] + (step,) * (hi - lo) + spec.program[hi:]

    return _rewrite(f"repeat({lo}, {hi}{'' if block is None else f', block={block}'})", rewrite)


def reverse(lo: int, hi: int) -> Rewrite:
    """Run positions [lo, hi) in reverse order. `reverse(s, s + 2)` switches two neighbours."""
    return _on_span(f"reverse({lo}, {hi})", lo, hi, lambda program: program[::-1])


def random_order(lo: int, hi: int, seed: int) -> Rewrite:
    """Run positions [lo, hi) in an order drawn from `seed`, with Python's generator as in the paper's code."""

    def shuffled(program: Program) -> Program:
        steps = list(program)
        random.Random(seed).shuffle(steps)
        return tuple(steps)

    return _on_span(f"random_order({lo}, {hi}, seed={seed})", lo, hi, shuffled)


def parallel(lo: int, hi: int, loops: int = 1, alpha: float = 1.0) -> Rewrite:
    """Run positions [lo, hi) on one input and average their outputs: x + alpha * mean_i(f_i(x) - x), `loops` times.

    alpha 1 is the paper; alpha = hi - lo adds the updates up. Positions that are themselves parallel, looped or scaled
    are refused.
    """

    def joined(program: Program) -> Program:
        nested = [step for step in program if not is_plain(step)]
        if nested:
            raise BadInput(f"parallel({lo}, {hi}): {nested[0]} is parallel, looped or scaled already, expected plain blocks")
        return (Step(tuple(step.blocks[0] for step in program), "mean", loops, alpha),)

    return _on_span(f"parallel({lo}, {hi}, loops={loops}, alpha={alpha:g})", lo, hi, joined)


def looped_parallel(lo: int, hi: int, loops: int = 3) -> Rewrite:
    """`parallel` applied `loops` times, the average fed back to all blocks; the paper's headline is 3."""
    return parallel(lo, hi, loops)


def _on_span(text: str, lo: int, hi: int, change: Callable[[Program], Program]) -> Rewrite:
    def rewrite(spec: ModelSpec) -> Program:
        _check_span(spec, lo, hi)
        return spec.program[:lo] + change(spec.program[lo:hi]) + spec.program[hi:]

    return _rewrite(text, rewrite)


def _rewrite(text: str, rewrite: Callable[[ModelSpec], Program]) -> Rewrite:
    def on(spec: ModelSpec) -> ModelSpec:
        program = rewrite(spec)
        if not program:
            raise BadInput(f"{text}: leaves no block to run, expected at least one")
        return spec.replace(program=program)

    def run(spec: ModelSpec, params: Params, rng: jax.Array) -> Result:
        after = on(spec)
        return after, params, compare((spec, params), (after, params))

    return Rewrite(text, run, on)


def _check_span(spec: ModelSpec, lo: int, hi: int) -> None:
    steps = len(spec.program)
    if not 0 <= lo < hi <= steps:
        raise BadInput(f"span [{lo}, {hi}) of a program of {steps} steps: expected 0 <= lo < hi <= {steps}")
