"""Layers as painters on any family: every order of a model's blocks on one set of prompts, measured and painted.

After "Transformer Layers as Painters" (arXiv 2407.09298) and what has been seen of it on text-to-image models (SD3, Flux,
AuraFlow: the prompts of `blog_prompts.txt`). Each stretch of the program that is of one make is measured by itself, and all
across; `graftax.study.claims` reads what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from graftax.analyze import (
    Input,
    OutputError,
    ProgramSampler,
    Strategy,
    Stretch,
    loop_sweep,
    single_skips,
    state_similarities,
    strategies,
    stretches,
    switches,
    trajectory,
)
from graftax.analyze.strategies import Span
from graftax.errors import BadInput, naming
from graftax.evaluate.drawing import SampleConfig
from graftax.models.library import Library
from graftax.progress import Progress
from graftax.spec import ModelSpec
from graftax.study.measures import Part, grouped
from graftax.study.painters import TIMES, kinds_of
from graftax.study.subjects import Subject, open_subject

HEADLINE = 3
"""Rounds of the paper's looped parallel."""

LOOPS, ALPHAS = (1, 2, 3, 4, 6, 8), (0.5, 1.0, 2.0)
"""Rounds and factors of the sweep; the number of blocks is tried as either, and half of it as a factor."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a subject. Raises `BadInput` on numbers below 1.

    Attributes:
        sampling: how pictures are drawn, and with them the inputs that predictions are compared on.
        each: pictures of a prompt, each from a noise of its own, the same for all orders.
        orders: random ones.
    """

    sampling: SampleConfig
    each: int = 4
    orders: int = 10

    def __post_init__(self) -> None:
        for name in ("each", "orders"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}: got {getattr(self, name)}, expected 1 or more")


@dataclass(frozen=True, eq=False)
class Painted:
    """What was found.

    Attributes:
        found: JSON types.
        pictures: by stretch and strategy, "intact" first, the model's array of every prompt's first picture (n, h, w, c).
    """

    found: Part
    pictures: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


def ask(
    name: str, prompts: str | None, sampled: Callable[[ModelSpec], SampleConfig], each: int, orders: int, **opened: Any
) -> tuple[Subject, Asked]:
    """`open_subject(name, prompts, **opened)` and what is asked of it; `sampled`: how models of a spec are drawn.

    Raises `BadInput` as these do, before any device is used.
    """
    subject = open_subject(name, prompts, vet=lambda spec: Asked(sampling=sampled(spec), each=each, orders=orders), **opened)
    return subject, Asked(sampling=sampled(subject.model.spec), each=each, orders=orders)


# --- What is tried ---------------------------------------------------------------------------------------------------


def main_span(stretch: Stretch) -> Span:
    """The centred span nearest to half of a stretch."""
    return min(stretch.centred(), key=lambda span: abs(span[1] - span[0] - stretch.steps / 2))


def spans_of(stretch: Stretch) -> tuple[Span, ...]:
    """The centred spans of about a quarter and a half and the widest, and both halves."""
    centred = stretch.centred()
    quarter = min(centred, key=lambda span: abs(span[1] - span[0] - stretch.steps / 4))
    return tuple(dict.fromkeys([quarter, main_span(stretch), centred[-1], *stretch.halves()]))


def tried(spec: ModelSpec, stretch: Stretch, orders: int) -> dict[str, tuple[Strategy, ...]]:
    """By plan what is tried on a stretch: "spans" every strategy on `spans_of` it, "random" more orders, "sweep" K and
    alpha on the main span."""
    kinds, main = kinds_of(spec), main_span(stretch)
    plans = {"spans": strategies(spec, spans_of(stretch), kinds, seeds=(0,), loops=(HEADLINE,), within=stretch.span)}
    plans["random"] = strategies(spec, [main], ("random",), seeds=range(1, orders))
    if "looped parallel" in kinds:
        m = main[1] - main[0]
        plans["sweep"] = loop_sweep(spec, main, sorted({*LOOPS, m}), sorted({*ALPHAS, m / 2, float(m)}))
    return plans


def shown(chosen: Sequence[Strategy], single: Sequence[Strategy], stretch: Stretch) -> dict[str, Strategy]:
    """The strategies whose pictures are shown, by caption: the first block and the last left out, the main span in every
    way, both halves left out."""
    lo, hi = stretch.span
    ends = {"skip the first": single[lo], "skip the last": single[hi - 1]}
    main = {one.kind: one for one in chosen if one.span == main_span(stretch)}
    halves = zip(("skip the lower half", "skip the upper half"), stretch.halves(), strict=False)
    skips = {name: one for name, span in halves for one in chosen if one.kind == "skip" and one.span == span}
    return ends | main | skips


# --- What is measured ------------------------------------------------------------------------------------------------


def measure(subject: Subject, asked: Asked) -> Painted:
    """Similarity of states, error of the prediction per time, and distance of the final pictures, of all that is tried."""
    model, how = subject.model, asked.sampling
    spec, count = model.spec, len(subject.prompts) * asked.each
    cond = {name: np.repeat(np.asarray(value), asked.each, 0) for name, value in subject.cond.items()}
    size = max(d for d in range(1, min(how.batch_size, count) + 1) if count % d == 0)
    given = {"cond": cond, "null_cond": subject.null, "sampling": how.sampling, "rng": jax.random.key(how.seed)}
    every = max(1, how.steps // TIMES)
    with naming("painters"):
        walk = trajectory(model, batch_size=size, **given)
        inputs = [batch for i, batch in enumerate(walk) if i % how.steps % every == 0]
    states = state_similarities(model, _singly(inputs), total=sum(len(t) for _, t, _ in inputs))
    weights = Library((spec,)).prepare(model.params)
    error = OutputError(model, inputs, weights=weights)
    draw = ProgramSampler(model, batch_size=size, weights=weights, **given)
    found, pictures = _orders(spec, asked, Measured(error, draw, asked.each))
    return Painted(
        {
            "backbone": spec.backbone, "steps": len(spec.program), "prompts": list(subject.prompts),
            "source": subject.source, "each": asked.each, "orders": asked.orders,
            "inputs": sum(len(t) for _, t, _ in inputs), "times": len(range(0, how.steps, every)), "sampling": str(how),
            "compilations": [error.compilations, draw.compilations],
            "similarity": _by_stream({name: grouped(one) for name, one in states.items()}), **found,
        },
        pictures,
    )  # fmt: skip


class Measured:
    """Lines of strategies, each measured once: `error` and `draw` of one model, `each` pictures of a prompt."""

    def __init__(self, error: OutputError, draw: ProgramSampler, each: int) -> None:
        self._error, self._draw, self._each = error, draw, each
        self._intact = draw(error.spec.program)
        self._seen = ~np.isnan(error(error.spec.program).by_time)
        self._known: dict[Any, Part] = {}

    def intact(self) -> np.ndarray:
        """The first picture of every prompt."""
        return self._intact[:: self._each]

    def line(self, strategy: Strategy) -> Part:
        """JSON types: errors of the prediction, and distances of the pictures, relative, in all and by prompt.

        A strategy whose numbers overflow is infinitely far off; times that no input had are None.
        """
        if strategy.program not in self._known:
            deviation = self._error(strategy.program)
            away, size = (_norms(x) for x in (self._draw(strategy.program) - self._intact, self._intact))
            by_prompt = _finite_or_far((away / size).reshape(-1, self._each).mean(1))
            by_time = [float(one) if seen else None
                       for one, seen in zip(_finite_or_far(deviation.by_time), self._seen, strict=True)]  # fmt: skip
            self._known[strategy.program] = {
                "error": float(_finite_or_far(deviation.error)), "cosine": deviation.cosine, "by_time": by_time,
                "distance": float(by_prompt.mean()), "distances": by_prompt.tolist(),
            }  # fmt: skip
        said = {"kind": strategy.kind, "program": str(strategy), "span": list(strategy.span)}
        return {**said, **self._known[strategy.program]}

    def picture(self, strategy: Strategy) -> np.ndarray:
        """The first picture of every prompt."""
        return self._draw(strategy.program)[:: self._each]


def _orders(spec: ModelSpec, asked: Asked, measured: Measured) -> tuple[Part, dict[str, dict[str, np.ndarray]]]:
    parts = [one for one in stretches(spec) if one.centred()]
    single = single_skips(spec)
    pairs = [pair for one in stretches(spec) if not one.across for pair in switches(spec, one.span)]
    plans = {one.name: tried(spec, one, asked.orders) for one in parts}
    pictures: dict[str, dict[str, np.ndarray]] = {}
    total = len(single) + len(pairs) + sum(len(plan) for plan in plans.values() for plan in plan.values())
    with Progress(total, "strategies", unit="strategy") as progress:

        def lines(chosen: Sequence[Strategy]) -> list[Part]:
            found = []
            for strategy in chosen:
                found.append(measured.line(strategy))
                progress.advance()
            return found

        found: Part = {"single": lines(single), "switch": lines(pairs), "stretches": []}
        for one in parts:
            plan = plans[one.name]
            said = {"name": one.name, "span": list(one.span), "joint": one.joint, "main": list(main_span(one))}
            said["halves"] = list(map(list, one.halves()))
            found["stretches"].append({**said, **{name: lines(chosen) for name, chosen in plan.items()}})
            shows = shown(plan["spans"], single, one)
            pictures[one.name] = {"intact": measured.intact()} | {k: measured.picture(s) for k, s in shows.items()}
    return found, pictures


def _singly(inputs: Sequence[Input]) -> Iterator[Input]:
    """One sample at a time: all states of a large model's are gigabytes for each."""
    for x, t, cond in inputs:
        for i in range(len(t)):
            yield x[i : i + 1], t[i : i + 1], {name: value[i : i + 1] for name, value in cond.items()}


def _by_stream(found: Mapping[tuple[str, str], Part]) -> dict[str, dict[str, Part]]:
    nested: dict[str, dict[str, Part]] = {}
    for (stream, form), one in found.items():
        nested.setdefault(stream, {})[form] = one
    return nested


def _finite_or_far(values: ArrayLike) -> np.ndarray:
    """NaN, which comes of infinite numbers, as infinity."""
    return np.nan_to_num(np.asarray(values, np.float64), nan=np.inf, posinf=np.inf)


def _norms(arrays: np.ndarray) -> np.ndarray:
    """(n,) of arrays (n, h, w, c)."""
    return np.linalg.norm(arrays.reshape(len(arrays), -1), axis=1)
