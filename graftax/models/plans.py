"""How a program is compiled: a plan cuts it into segments. All plans compute the same thing.

Cuts fall at changes of block kind first; within a run of one kind `unroll` repeats the code of every block: fastest to run,
slowest to compile. `scan` compiles one block and needs them all alike. `superblock` scans over a short repeating pattern,
`segments` over each run of equal blocks. `kind_scan` scans any mixture of operators, with a `lax.switch` over them. `auto`
takes the first that fits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from graftax.errors import BadInput, did_you_mean
from graftax.spec import ModelSpec, Step

PLANS = ("auto", "unroll", "scan", "superblock", "segments", "kind_scan")
MAX_PERIOD = 4
MAX_RUNS = 4
UNROLL_BELOW = 5
"""Programs of fewer blocks are unrolled: a loop would save nothing."""


@dataclass(frozen=True)
class Segment:
    """Part of a program that is compiled as one piece.

    Attributes:
        mode: "unroll": `ids` one after the other. "periodic": a scan over groups of `period` blocks. "kinds": a scan with
            a switch. "parallel": the one `step`, whose blocks share their input. "parallel_scan": a scan over steps that
            are like `step` but for the blocks' numbers.
        ids: numbers of the blocks, of a "parallel_scan" those of all its steps.
        period: blocks in a group.
        step: of the parallel modes.
    """

    mode: str
    ids: tuple[int, ...]
    period: int = 1
    step: Step | None = None

    @property
    def steps(self) -> int:
        """Steps of the program that it runs."""
        return len(self.ids) // len(self.step.blocks) if self.step else len(self.ids)


def segments(spec: ModelSpec, plan: str = "auto", cuts: Iterable[int] = ()) -> tuple[Segment, ...]:
    """Cut `spec.program` by `plan`; parallel and looped steps become segments of their own, runs of equal ones a scan.

    `cuts`: positions of the program before which a segment ends, whatever the plan. Raises `BadInput` for an unknown plan
    or one that does not fit the blocks.
    """
    if plan not in PLANS:
        raise BadInput(f"plan: got {plan!r}, expected one of {PLANS}{did_you_mean(plan, PLANS)}")
    ends = sorted({0, len(spec.program), *cuts})
    return tuple(piece for a, b in itertools.pairwise(ends) for piece in _pieces(spec, spec.program[a:b], plan))


def _pieces(spec: ModelSpec, program: tuple[Step, ...], plan: str) -> list[Segment]:
    out: list[Segment] = []
    for single, steps in itertools.groupby(program, key=_is_single):
        if not single:
            out += _cut_parallel(spec, tuple(steps), plan)
            continue
        ids = [step.blocks[0] for step in steps]
        for _, run in itertools.groupby(ids, key=lambda i: spec.blocks[i].kind):
            out += _cut(spec, tuple(run), plan)
    return out


def _is_single(step: Step) -> bool:
    return len(step.blocks) == 1 and step.loops == 1 and step.alpha == 1 and step.merge != "project"


def _cut(spec: ModelSpec, ids: tuple[int, ...], plan: str) -> list[Segment]:
    period, runs = _period(spec, ids), _runs(spec, ids)
    if plan == "auto":
        plan = _choose(ids, period, len(runs))
    if plan == "scan" and len(runs) > 1:
        raise BadInput(f"plan 'scan': the blocks are of {len(set(_kinds(spec, ids)))} kinds, expected all alike")
    if plan == "superblock" and period is None:
        raise BadInput(f"plan 'superblock': blocks {ids} repeat no pattern of up to {MAX_PERIOD} blocks")
    if plan == "scan" or (plan == "superblock" and period):
        return [Segment("periodic", ids, 1 if plan == "scan" else period or 1)]
    if plan == "segments":
        return [Segment("periodic" if len(run) > 1 else "unroll", run) for run in runs]
    return [Segment("kinds" if plan == "kind_scan" else "unroll", ids)]


def _cut_parallel(spec: ModelSpec, steps: tuple[Step, ...], plan: str) -> list[Segment]:
    out: list[Segment] = []
    for _, run in itertools.groupby(steps, key=lambda step: (_kinds(spec, step.blocks), step.merge, step.loops, step.alpha)):
        alike = list(run)
        ids = tuple(i for step in alike for i in step.blocks)
        together = plan != "unroll" and alike[0].loops == 1 and len(alike) > 1
        if together and (plan != "auto" or len(ids) >= UNROLL_BELOW):
            out.append(Segment("parallel_scan", ids, step=alike[0]))
        else:
            out += [Segment("parallel", step.blocks, step=step) for step in alike]
    return out


def _choose(ids: tuple[int, ...], period: int | None, runs: int) -> str:
    if len(ids) < UNROLL_BELOW:
        return "unroll"
    if runs == 1:
        return "scan"
    if period is not None:
        return "superblock"
    return "segments" if runs <= MAX_RUNS else "kind_scan"


def _kinds(spec: ModelSpec, ids: tuple[int, ...]) -> list[object]:
    return [spec.blocks[i] for i in ids]


def _period(spec: ModelSpec, ids: tuple[int, ...]) -> int | None:
    kinds = _kinds(spec, ids)
    for period in range(1, MAX_PERIOD + 1):
        if len(ids) % period == 0 and kinds == kinds[:period] * (len(ids) // period):
            return period
    return None


def _runs(spec: ModelSpec, ids: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [tuple(run) for _, run in itertools.groupby(ids, key=lambda i: spec.blocks[i])]
