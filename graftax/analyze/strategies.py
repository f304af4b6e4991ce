"""Orders in which a model's blocks can run: the strategies of "Transformer Layers as Painters" (arXiv 2407.09298, Fig. 2).

Each is a rewrite of the program (`graftax.surgery.program`) on a span of its positions; `graftax.analyze.painters` runs
them. Where a model has blocks of several kinds, `stretches` are the parts of its program that are of one make.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from graftax.blocks import block_kind
from graftax.errors import BadInput
from graftax.spec import ModelSpec, Step
from graftax.surgery import Rewrite, painters_span, parallel, random_order, repeat, reverse, skip

Program = tuple[Step, ...]
Span = tuple[int, int]
KINDS = ("skip", "middle repeat", "reverse", "random", "parallel", "looped parallel")


@dataclass(frozen=True)
class Strategy:
    """One way to run a span of the program.

    Attributes:
        kind: one of `KINDS`, or "switch".
        span: positions (lo, hi), half-open.
        text: the rewrite that gives `program`, as `graftax.parse` reads it.
        program: what runs.
    """

    kind: str
    span: Span
    text: str
    program: Program

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Stretch:
    """Neighbouring positions of a program whose blocks are of one make, so that they may take each other's places.

    Attributes:
        name: the kinds of its blocks, "sd3_dual+sd3".
        span: positions (lo, hi), half-open.
        joint: whether each stream has weights of its own and both meet in a joint attention, as in MM-DiT; None where there
            are blocks with and without.
        across: whether it is made up of several others.
    """

    name: str
    span: Span
    joint: bool | None
    across: bool = False

    @property
    def steps(self) -> int:
        """How many positions."""
        return self.span[1] - self.span[0]

    def centred(self) -> tuple[Span, ...]:
        """The paper's spans of these positions, those of two or more: one position has no order."""
        lo, _ = self.span
        return tuple((lo + a, lo + b) for a, b in centred_spans(self.steps) if b - a > 1)

    def halves(self) -> tuple[Span, ...]:
        """Both halves of what lies between the first position and the last, an odd one in the middle left out; () where they
        are shorter than two."""
        lo, hi = self.span
        size = (self.steps - 2) // 2
        return ((lo + 1, lo + 1 + size), (hi - 1 - size, hi - 1)) if size > 1 else ()


def stretches(spec: ModelSpec) -> tuple[Stretch, ...]:
    """The parts of a program of one make in order, and where there are several, all from the first to the last as one more.

    Blocks are of one make where both have a joint attention or both have none: the two kinds of SD3.5's are, Flux's are not.
    Blocks that belong at the end (`BlockKind.pinned`) are in none.
    """
    runs = itertools.groupby(enumerate(spec.program), key=lambda item: _make(spec, item[1]))
    found = []
    for make, run in runs:
        places, steps = zip(*run, strict=True)
        if make:
            name = "+".join(dict.fromkeys(spec.blocks[i].kind for step in steps for i in step.blocks))
            found.append(Stretch(name, (places[0], places[-1] + 1), make == {True} if len(make) == 1 else None))
    if len(found) > 1:
        names = dict.fromkeys(one.name for one in found)
        found.append(Stretch(" and ".join(names), (found[0].span[0], found[-1].span[1]), None, across=True))
    return tuple(found)


def _make(spec: ModelSpec, step: Step) -> frozenset[bool]:
    """Whether the blocks of a step have a joint attention; nothing where one belongs at the end."""
    kinds = [block_kind(spec.blocks[i].kind) for i in step.blocks]
    if any(kind.pinned for kind in kinds):
        return frozenset()
    return frozenset(any(slot.role == "joint" for slot in kind.slots) for kind in kinds)


def strategies(
    spec: ModelSpec, spans: Iterable[Span], kinds: Sequence[str] = KINDS, *, seeds: Sequence[int] = tuple(range(10)),
    loops: Sequence[int] = (3,), within: Span | None = None,
) -> tuple[Strategy, ...]:  # fmt: skip
    """The paper's strategies on every span, in order of `kinds`; "random" once per seed, "looped parallel" per K in `loops`.

    "middle repeat" runs the middle step of the positions `within` (None: of the program, as in the paper) in place of each
    in the span; where the span does not hold it, the span's own middle. Raises `BadInput` on unknown kinds, spans out of
    range, and where a rewrite is impossible (parallel over steps that are parallel already).
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise BadInput(f"strategies: {unknown[0]!r}, expected some of {KINDS}")
    found = []
    for kind in kinds:
        for lo, hi in spans:
            rewrites = _rewrites(spec, kind, lo, hi, seeds, loops, within or (0, len(spec.program)))
            found += [_strategy(spec, kind, (lo, hi), rewrite) for rewrite in rewrites]
    return tuple(found)


def single_skips(spec: ModelSpec) -> tuple[Strategy, ...]:
    """Every step of the program left out alone (none for a program of one step)."""
    return strategies(spec, [(i, i + 1) for i in range(len(spec.program)) if len(spec.program) > 1], ("skip",))


def switches(spec: ModelSpec, within: Span | None = None) -> tuple[Strategy, ...]:
    """Every two neighbouring steps of the positions `within` (None: of the program) in exchanged order, the paper's
    "switch"."""
    lo, hi = within or (0, len(spec.program))
    spans = [(i, i + 2) for i in range(lo, hi - 1)]
    return tuple(_strategy(spec, "switch", span, reverse(*span)) for span in spans)


def loop_sweep(spec: ModelSpec, span: Span, loops: Sequence[int], alphas: Sequence[float]) -> tuple[Strategy, ...]:
    """x + alpha mean_i(f_i(x) - x), K times: the span in parallel for all K in `loops`, then all `alphas`, K outermost.

    alpha 1 is the paper; alpha = M adds the M updates up. About K alpha / M of the intact update is made.
    """
    sweeps = [(k, alpha) for k in loops for alpha in alphas]
    return tuple(_strategy(spec, "looped parallel", span, parallel(*span, loops=k, alpha=a)) for k, a in sweeps)


def centred_spans(steps: int) -> tuple[Span, ...]:
    """The paper's spans of a program of so many steps, the smallest first (`graftax.surgery.painters_span`)."""
    return tuple(painters_span(steps, start) for start in reversed(range((steps - 2) // 2 + 1)))


def all_spans(steps: int, least: int = 1) -> tuple[Span, ...]:
    """Every span of at least `least` positions, but the whole program."""
    spans = [(lo, hi) for lo in range(steps) for hi in range(lo + least, steps + 1)]
    return tuple(span for span in spans if span != (0, steps))


def _rewrites(
    spec: ModelSpec, kind: str, lo: int, hi: int, seeds: Sequence[int], loops: Sequence[int], within: Span
) -> list[Rewrite]:
    return {
        "skip": lambda: [skip(lo, hi)],
        "middle repeat": lambda: [_middle_repeat(spec, lo, hi, sum(within) // 2)],
        "reverse": lambda: [reverse(lo, hi)],
        "random": lambda: [random_order(lo, hi, seed) for seed in seeds],
        "parallel": lambda: [parallel(lo, hi)],
        "looped parallel": lambda: [parallel(lo, hi, loops=k) for k in loops],
    }[kind]()


def _middle_repeat(spec: ModelSpec, lo: int, hi: int, middle: int) -> Rewrite:
    steps = spec.program
    held = lo <= middle < hi
    if (held and middle == len(steps) // 2) or not 0 <= lo < hi <= len(steps):  # `repeat` refuses the latter
        return repeat(lo, hi)
    own = steps[middle if held else (lo + hi) // 2]
    if len(own.blocks) != 1:
        raise BadInput(f"middle repeat of [{lo}, {hi}): {own} runs several blocks, expected a single one")
    return repeat(lo, hi, *own.blocks)


def _strategy(spec: ModelSpec, kind: str, span: Span, rewrite: Rewrite) -> Strategy:
    return Strategy(kind, span, str(rewrite), rewrite.on(spec).program)
