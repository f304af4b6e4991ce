"""Layers as painters of scenes: what a model still gets right with its blocks in another order, by the judge of scenes.

Errors and distances (`graftax.study.painting`) say how far a picture moves; the judge says what is lost of it: things,
their number, their colours, their places. Captions and noise are the same for every order, and others for every seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from graftax.analyze import ProgramSampler, Strategy, single_skips, strategies, stretches
from graftax.checkpoint.files import filling
from graftax.data.scenes.caption import CATEGORIES
from graftax.errors import BadInput
from graftax.evaluate.drawing import SampleConfig
from graftax.evaluate.scenes import prompt_set, score
from graftax.evaluate.tables import aligned
from graftax.progress import Progress
from graftax.spec import ModelSpec
from graftax.study.painters import kinds_of
from graftax.study.painting import HEADLINE, main_span
from graftax.study.text_to_image import open_pipeline

OVERALL = "overall"
SEEDS = (0, 1, 2)
INTACT = "intact"
FOUND = "judged.json"


@dataclass(frozen=True)
class JudgedOrder:
    """What is right of the pictures of one way to run the blocks.

    Attributes:
        kind: of strategy, `INTACT` for none.
        span: positions (lo, hi) that it changes, half-open.
        shares: by category, and `OVERALL`, their mean: one share for each seed; of "random" one for each order and seed.
    """

    kind: str
    span: tuple[int, int]
    shares: dict[str, list[float]]

    def cell(self, name: str) -> str:
        """Mean and standard deviation of the shares, in per cent."""
        shares = 100 * np.array(self.shares[name])
        return f"{shares.mean():.0f} ± {shares.std(ddof=1) if len(shares) > 1 else 0:.0f}"


@dataclass(frozen=True)
class JudgedOrders:
    """All orders of a model.

    Attributes:
        model: what it is called.
        each: captions of a category for each seed.
        seeds: of captions and noise.
        sampling: how pictures were drawn.
        orders: the intact model first.
    """

    model: str
    each: int
    seeds: tuple[int, ...]
    sampling: str
    orders: tuple[JudgedOrder, ...]

    def table(self) -> str:
        """A line for each order: per cent of pictures that are right, mean and standard deviation over seeds."""
        names = (*CATEGORIES, OVERALL)
        head = ["", *(name.replace("_", " ") for name in names)]
        rows = [[_called(one), *map(one.cell, names)] for one in self.orders]
        return "\n".join(aligned([head, *rows]))


def write(found: JudgedOrders, folder: Path) -> str:
    """Leave `found` in the folder as JSON; what there is to print."""
    with filling(folder) as fresh:
        (fresh / FOUND).write_text(json.dumps(asdict(found), indent=1) + "\n")
    return f"{found.table()}\n{folder}: {FOUND}"


def judge_orders(
    name: str, sampled: Callable[[ModelSpec], SampleConfig] = SampleConfig.of, each: int = 10,
    seeds: Sequence[int] = SEEDS, chosen: Callable[[ModelSpec], Sequence[Strategy]] | None = None, **opened: Any,
) -> JudgedOrders:  # fmt: skip
    """Draw and judge every order of the blocks of the model `name`, which draws scenes: "scenes", or one trained on them.

    `each` held-out captions of each of GenEval's six categories for every seed; `sampled`: how models of a spec are drawn;
    `chosen`: which orders, None for `orders_of`. Compiled once. `opened` as in `open_pipeline`, which raises `BadInput` as
    here: where the model reads no words, and on numbers below 1.
    """
    if each < 1 or not seeds:
        raise BadInput(f"judged orders: {each} captions of each category, {len(seeds)} seeds, expected 1 or more of both")
    captions = [caption for seed in seeds for caption in prompt_set(each, seed=seed)]
    texts = list(map(str, captions))
    pipeline = open_pipeline(name, texts, **opened)
    if pipeline.decode is None:
        raise BadInput(f"model {name}: its latents have no decoder here, expected --latents")
    spec, decode = pipeline.model.spec, pipeline.decode
    how, size = sampled(spec), len(captions) // len(seeds)
    draw = ProgramSampler(
        pipeline.model, cond=pipeline.conditions(texts), null_cond=pipeline.null(), sampling=how.sampling,
        rng=jax.random.key(how.seed), batch_size=size,
    )  # fmt: skip

    def shares(program: Any) -> dict[str, list[float]]:
        pixels = decode(draw(program))
        parts = [score(pixels[i : i + size], captions[i : i + size]).scores for i in range(0, len(captions), size)]
        return {name: [float(part[name]) for part in parts] for name in (*CATEGORIES, OVERALL)}

    orders = [JudgedOrder(INTACT, (0, 0), shares(spec.program))]
    tried = (chosen or orders_of)(spec)
    with Progress(len(tried), "judged orders", unit="order") as progress:
        for one in tried:
            orders.append(JudgedOrder(one.kind, one.span, shares(one.program)))
            progress.advance()
    return JudgedOrders(name, each, tuple(seeds), str(how), _pooled(orders))


def orders_of(spec: ModelSpec) -> tuple[Strategy, ...]:
    """Every block left out, and on each stretch of one make the main span in all ways and both halves left out."""
    found = list(single_skips(spec))
    for one in stretches(spec):
        if one.centred():
            spans, kinds = [main_span(one)], kinds_of(spec)
            found += strategies(spec, spans, kinds, seeds=SEEDS, loops=(HEADLINE,), within=one.span)
            found += strategies(spec, one.halves(), ("skip",))
    return tuple({(one.kind, one.program): one for one in found}.values())


def _pooled(orders: Sequence[JudgedOrder]) -> tuple[JudgedOrder, ...]:
    """Random orders of one span as one."""
    found: dict[tuple[str, tuple[int, int]], JudgedOrder] = {}
    for one in orders:
        before = found.get((one.kind, one.span))
        shares = one.shares if before is None else {k: before.shares[k] + one.shares[k] for k in one.shares}
        found[one.kind, one.span] = JudgedOrder(one.kind, one.span, shares)
    return tuple(found.values())


def _called(order: JudgedOrder) -> str:
    lo, hi = order.span
    return order.kind + ("" if order.kind == INTACT else f" {lo}" if hi - lo == 1 else f" {lo}..{hi - 1}")
