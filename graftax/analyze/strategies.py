"""Orders in which a model's blocks can run: the strategies of "Transformer Layers as Painters" (arXiv 2407.09298, Fig. 2).

Each is a rewrite of the program (`graftax.surgery.program`) on a span of its positions; `graftax.analyze.painters` runs
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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


def strategies(
    spec: ModelSpec, spans: Iterable[Span], kinds: Sequence[str] = KINDS, *, seeds: Sequence[int] = tuple(range(10)),
    loops: Sequence[int] = (3,),
) -> tuple[Strategy, ...]:  # fmt: skip
    """The paper's strategies on every span, in order of `kinds`; "random" once per seed, "looped parallel" per K in `loops`.

    "middle repeat" runs the program's middle step in place of each in the span, as in the paper; where the span does not
    hold it, the span's own middle. Raises `BadInput` on unknown kinds, spans out of range, and where a rewrite is impossible
    (parallel over steps that are parallel already).
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise BadInput(f"strategies: {unknown[0]!r}, expected some of {KINDS}")
    found = []
    for kind in kinds:
        for lo, hi in spans:
            found += [_strategy(spec, kind, (lo, hi), rewrite) for rewrite in _rewrites(spec, kind, lo, hi, seeds, loops)]
    return tuple(found)


def single_skips(spec: ModelSpec) -> tuple[Strategy, ...]:
    """Every step of the program left out alone (none for a program of one step)."""
    return strategies(spec, [(i, i + 1) for i in range(len(spec.program)) if len(spec.program) > 1], ("skip",))


def switches(spec: ModelSpec) -> tuple[Strategy, ...]:
    """Every two neighbouring steps in exchanged order, the paper's "switch"."""
    spans = [(i, i + 2) for i in range(len(spec.program) - 1)]
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


def _rewrites(spec: ModelSpec, kind: str, lo: int, hi: int, seeds: Sequence[int], loops: Sequence[int]) -> list[Rewrite]:
    return {
        "skip": lambda: [skip(lo, hi)],
        "middle repeat": lambda: [_middle_repeat(spec, lo, hi)],
        "reverse": lambda: [reverse(lo, hi)],
        "random": lambda: [random_order(lo, hi, seed) for seed in seeds],
        "parallel": lambda: [parallel(lo, hi)],
        "looped parallel": lambda: [parallel(lo, hi, loops=k) for k in loops],
    }[kind]()


def _middle_repeat(spec: ModelSpec, lo: int, hi: int) -> Rewrite:
    steps = spec.program
    if lo <= len(steps) // 2 < hi or not 0 <= lo < hi <= len(steps):  # `repeat` refuses the latter
        return repeat(lo, hi)
    own = steps[(lo + hi) // 2]
    if len(own.blocks) != 1:
        raise BadInput(f"middle repeat of [{lo}, {hi}): {own} runs several blocks, expected a single one")
    return repeat(lo, hi, *own.blocks)


def _strategy(spec: ModelSpec, kind: str, span: Span, rewrite: Rewrite) -> Strategy:
    return Strategy(kind, span, str(rewrite), rewrite.on(spec).program)
