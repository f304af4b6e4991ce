"""The painters' part of an analysis: which orders of the blocks are measured, and the images they paint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from graftax.analyze import (
    Deviation,
    OutputError,
    ProgramSampler,
    Strategy,
    all_spans,
    centred_spans,
    loop_sweep,
    single_skips,
    strategies,
    switches,
    trajectory,
)
from graftax.analyze.strategies import KINDS, Span
from graftax.models import Model
from graftax.progress import Progress
from graftax.spec import ModelSpec
from graftax.study.analysis import Settings
from graftax.surgery.report import is_plain

LOOPS = (1, 2, 3, 4, 6, 8, 12)
"""Numbers of loops K that are tried; the paper's headline is 3."""

TIMES = 10
"""How many steps of each trajectory the strategies are measured at, evenly spread."""

EDGES = 12
"""Positions at which spans of the grid may begin and end, about; deeper models are cut more coarsely."""

GRID = ("skip", "reverse", "parallel")
"""Strategies that are tried on the whole grid of spans."""

Part = dict[str, Any]


def measure(model: Model, settings: Settings) -> Part:
    """Errors of all strategies on a program of three steps or more, JSON types."""
    spec = model.spec
    every = max(1, settings.sampling.steps // TIMES)
    plans = _plans(spec, settings)
    inputs = list(trajectory(model, settings.labels(spec, settings.painted), **settings.trajectory()))[::every]
    error = OutputError(model, inputs)
    chosen = [strategy for plan in plans.values() for strategy in plan]
    deviations = iter(error.measure(chosen))
    found = {name: [_line(strategy, next(deviations)) for strategy in plan] for name, plan in plans.items()}
    return {
        "steps": len(spec.program), "inputs": sum(len(batch[1]) for batch in inputs), "seeds": settings.orders,
        "shown": list(_shown_span(spec)), "alphas": _alphas(spec), "loops": list(LOOPS), "compilations": error.compilations,
        "found": found,
    }  # fmt: skip


def paint(model: Model, settings: Settings, part: Part) -> dict[str, np.ndarray]:
    """What the strategies paint, by name, the intact model first: (n, h, w, c) each, from one noise.

    Puts the images' distances from the intact model's, ||x - intact|| / ||intact||, into `part`.
    """
    spec = model.spec
    on_span = strategies(spec, [_shown_span(spec)], kinds_of(spec), seeds=(0,), loops=(_best_loops(part),))
    chosen = [*((f"{s.kind}: {s}", s.program) for s in on_span), *((str(s), s.program) for s in single_skips(spec))]
    how = settings.sampling
    draw = ProgramSampler(model, settings.labels(spec, settings.shown), sampling=how.sampling, rng=jax.random.key(how.seed))
    found = {}
    with Progress(len(chosen) + 1, "images", unit="strategy") as progress:
        for name, program in (("intact", spec.program), *chosen):
            found[name] = draw(program)
            progress.advance()
    intact = found["intact"]
    part["painted"] = {
        name: float(np.linalg.norm(drawn - intact) / np.linalg.norm(intact))
        for name, drawn in found.items()
        if name != "intact"
    }
    return found


def _plans(spec: ModelSpec, settings: Settings) -> dict[str, tuple[Strategy, ...]]:
    """What is measured, by name: single layers, the paper's spans by kind, a grid of spans by kind, K and alpha."""
    steps = len(spec.program)
    kinds = kinds_of(spec)
    centred = [span for span in centred_spans(steps) if span[1] - span[0] > 1]  # one position has no order
    plans = {"single": single_skips(spec), "switch": switches(spec)}
    for kind in kinds:
        plans[kind] = strategies(spec, centred, (kind,), seeds=range(settings.orders), loops=LOOPS[1:])
    for kind in kinds:
        if kind in GRID:
            plans[f"grid {kind}"] = strategies(spec, _grid(steps, 1 if kind == "skip" else 2), (kind,))
    if "looped parallel" in kinds:
        plans["sweep"] = loop_sweep(spec, _shown_span(spec), LOOPS, _alphas(spec))
    return plans


def kinds_of(spec: ModelSpec) -> Sequence[str]:
    """The strategies that a model can run: what is parallel already cannot be made parallel again."""
    return KINDS if all(map(is_plain, spec.program)) else KINDS[:4]


def _grid(steps: int, least: int) -> list[Span]:
    edges = {*range(0, steps, -(-steps // EDGES)), steps}
    return [(lo, hi) for lo, hi in all_spans(steps, least) if lo in edges and hi in edges]


def _alphas(spec: ModelSpec) -> list[float]:
    lo, hi = _shown_span(spec)
    return sorted({0.5, 1.0, 2.0, (hi - lo) / 2, float(hi - lo)})


def _line(strategy: Strategy, deviation: Deviation) -> Part:
    by_time = [None if np.isnan(error) else error for error in deviation.by_time.tolist()]
    return {
        "program": str(strategy), "span": list(strategy.span), "error": deviation.error, "cosine": deviation.cosine,
        "by_time": by_time,
    }  # fmt: skip


def _shown_span(spec: ModelSpec) -> Span:
    """The centred span nearest to half of the program."""
    steps = len(spec.program)
    return min(centred_spans(steps), key=lambda span: abs(span[1] - span[0] - steps / 2))


def _best_loops(part: Part) -> int:
    """The K of least error on the shown span."""
    tried = [line for line in part["found"].get("looped parallel", ()) if line["span"] == part["shown"]]
    return loops_of(min(tried, key=lambda line: line["error"])) if tried else 3


def loops_of(line: Part) -> int:
    """K of a line of a "looped parallel" measurement."""
    return int(line["program"].partition("loops=")[2].partition(",")[0])
