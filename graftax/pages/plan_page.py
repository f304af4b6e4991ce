"""What `graftax plan` has found, as text, JSON, a page, and a config for every graft of the front."""

from __future__ import annotations

import dataclasses
import json
import pprint
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graftax import config
from graftax.checkpoint.files import filling
from graftax.evaluate import pictures
from graftax.evaluate.report import Figure, Report
from graftax.evaluate.result import environment
from graftax.evaluate.tables import aligned
from graftax.pages import common
from graftax.study.config import Recipe
from graftax.study.plan import Line, Plan
from graftax.surgery.config import GraftConfig

FILE = "plan.json"
Rows = list[list[str]]

CONFIG = '''"""Plan {number} of {count} for {model}: {promise}.

    graftax graft    --config {path}
    graftax distill  --config {path}
    graftax finetune --config {path}

Written by `graftax plan`; harm is the relative error of the model's output before any fine-tuning.
"""

from typing import Any


def get_config() -> dict[str, Any]:
    """Settings of the experiment."""
    return {settings}
'''


def text(found: Plan) -> str:
    """Both tables and the edits, without a line end."""
    edits = [f"plan {i}: {' '.join(one.edits)}" for i, one in enumerate(found.front, 1)]
    parts = [aligned(operators(found)), aligned(grafts(found), left=(0, 1)), edits, about(found)]
    return "\n\n".join("\n".join(line.rstrip() for line in lines) for lines in parts)


def write(found: Plan, model: str, recipe: Recipe, folder: Path) -> Path:
    """Write plan.json, front.png, plan.html and plan_1.py, plan_2.py, .. into `folder`; returns the page's path."""
    with filling(folder) as fresh:
        (fresh / FILE).write_text(json.dumps(record(found), indent=1) + "\n")
        for i, one in enumerate(found.front, 1):
            path, workdir = folder / f"plan_{i}.py", str(folder / f"plan_{i}")
            own = dataclasses.replace(recipe, workdir=workdir, graft=GraftConfig(edits=one.edits))
            settings = pprint.pformat(config.changes(own), width=110, sort_dicts=False)
            (fresh / path.name).write_text(
                CONFIG.format(
                    number=i, count=len(found.front), model=model, promise=_promise(found, i - 1), path=path,
                    settings=settings.replace("\n", "\n    "),
                )
            )  # fmt: skip
        points = {f"{i} {one.name}": (one.faster, [one.harm]) for i, one in enumerate(found.front, 1)}
        pictures.scatter(fresh / "front.png", points, x="times the speed, predicted", y="harm")
        page = Report(f"A plan for {model}", f"Asked for: {found.goal.name} {found.goal.value:g}. {about(found)[0]}")
        page.section("Grafts that reach it", *about(found)[1:])
        page.table(*_headed(grafts(found)))
        page.figures([Figure(fresh / "front.png", "The front", "None is beaten in speed, size and harm.")], least="26rem")
        for i in range(1, len(found.front) + 1):
            page.text((fresh / f"plan_{i}.py").read_text())
        page.section("Every operator at this model's size", "One run each, by itself; harm is that of single sites.")
        page.table(*_headed(operators(found)))
        page.write(fresh / "plan.html", common.footer())
    return folder / "plan.html"


def record(found: Plan) -> dict[str, Any]:
    """All figures as JSON types."""
    return {
        "goal": {found.goal.name: found.goal.value}, "whole": dataclasses.asdict(found.whole), "where": found.where,
        "harm": found.described, "environment": environment(),
        "operators": [
            {**dataclasses.asdict(one), "held": str(one.held), "operator": str(one.operator)} for one in found.lines
        ],
        "offers": [
            {"site": str(one.site), "operator": str(one.operator), "init": one.init, "harm": one.harm,
             "saved": dataclasses.asdict(one.saved)}
            for one in found.offers
        ],
        "considered": [
            {"name": one.name, "edits": list(one.edits), "faster": one.faster, "flops": one.flops, "params": one.params,
             "harm": one.harm}
            for one in found.considered
        ],
        "front": [list(one.edits) for one in found.front], "measured": list(found.measured),
    }  # fmt: skip


def about(found: Plan) -> list[str]:
    """How speed and harm come about."""
    ran = "median of calls that took turns" if found.measured else "by its roofline, not run there"
    whole = found.whole
    return [
        f"The model: {1e3 * whole.seconds:.4g} ms a pass on {found.where} ({ran}), {whole.flops / 1e9:.4g} GFLOPs, "
        f"{whole.params:,.0f} parameters.",
        f"Harm: relative error of the model's output, before any fine-tuning. Scions: {found.described}.",
        *_missed(found),
    ]


def _missed(found: Plan) -> list[str]:
    """Which grafts were slower than asked for when they were run."""
    slow = [str(i) for i, times in enumerate(found.measured, 1) if found.goal.name == "faster" and times < found.goal.value]
    return [f"Measured below the {found.goal.value:g} x asked for: plan {', '.join(slow)}."] if slow else []


def grafts(found: Plan) -> Rows:
    """The front as a table, the head first."""
    head = ["plan", "operators", "sites", "faster, predicted", "FLOPs", "parameters", "harm"]
    rows = [
        [
            str(i), ", ".join(dict.fromkeys(str(offer.operator) for offer in one.offers)), str(len(one.offers)),
            f"{one.faster:.3f} x", f"{one.flops:.3f}", f"{one.params:.3f}", f"{one.harm:.4f}",
        ]
        for i, one in enumerate(found.front, 1)
    ]  # fmt: skip
    if found.measured:
        head.insert(4, "measured")
        rows = [[*row[:4], f"{time:.3f} x", *row[4:]] for row, time in zip(rows, found.measured, strict=True)]
    return [head, *rows]


def operators(found: Plan) -> Rows:
    """Every operator as a table, the head first; the fastest in its slot first."""
    head = ["operator", "in place of", "sites", "ms", "its own", "faster", "FLOPs", "parameters", "harm of a site"]
    return [head, *map(_line, sorted(found.lines, key=lambda one: (one.slot, one.seconds[1])))]


def _line(one: Line) -> list[str]:
    (old, new), ratios = one.seconds, [new / old for old, new in (one.flops, one.params)]
    harm = "not measured" if one.harm is None else f"{one.harm[0]:.4f} to {one.harm[1]:.4f}"
    times = [f"{1e3 * old:.4g}", f"{1e3 * new:.4g}", f"{old / new:.2f} x"]
    return [str(one.operator), f"{one.slot} {one.held}", str(one.sites), *times, *(f"{ratio:.3f}" for ratio in ratios), harm]


def _promise(found: Plan, number: int) -> str:
    one = found.front[number]
    ran = f" (measured {found.measured[number]:.3f} x)" if found.measured else ""
    return (
        f"{one.faster:.3f} x the speed{ran} on {found.where}, {one.flops:.1%} of the FLOPs, {one.params:.1%} of the "
        f"parameters, harm {one.harm:.4f}"
    )


def _headed(table: Sequence[list[str]]) -> tuple[list[str], list[list[str]]]:
    return table[0], list(table[1:])
