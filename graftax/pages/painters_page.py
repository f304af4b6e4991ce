"""The painters' part of an analysis' page, and how any of its pictures is drawn."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graftax.analyze import pictures
from graftax.analyze.strategies import KINDS
from graftax.checkpoint.files import replacing
from graftax.evaluate import pictures as grids
from graftax.evaluate.report import Figure, Report
from graftax.study.painters import GRID, loops_of

Part = dict[str, Any]
Images = Mapping[str, np.ndarray]
LOOPED = KINDS[-1]


def drawn(
    folder: Path, name: str, title: str, caption: str, draw: Callable[..., None], *args: Any, **options: Any
) -> Figure:
    """`draw(path, *args, **options)` into folder/name.png, whole or not at all, as a figure of the page."""
    with replacing(folder / f"{name}.png") as temporary:
        draw(temporary, *args, **options)
    return Figure(folder / f"{name}.png", title, caption)


def verdict(part: Part) -> list[str]:
    """What skipping one layer costs, and the strategies on the shown span in order."""
    single = sorted(part["found"]["single"], key=lambda line: line["error"])
    least, worst = single[0], single[-1]
    lo, hi = part["shown"]
    errors = {name: statistics.fmean(values) for name, values in _on(part, part["shown"]).items()}
    ranked = ", ".join(f"{name} {error:.2f}" for name, error in sorted(errors.items(), key=lambda item: item[1]))
    return [
        f"Skipping one layer costs most at layer {worst['span'][0]} (error {worst['error']:.2f}), least at layer "
        f"{least['span'][0]} ({least['error']:.3f}).",
        *([f"Layers {lo} to {hi - 1}, best to worst: {ranked}."] if errors else []),
    ]


def add(page: Report, part: Part, images: Images, folder: Path) -> None:
    """The painters' sections."""
    page.section(
        "Layers as painters",
        "No weight changes, only the order in which layers run. Error: relative deviation of the predicted noise from the "
        f"intact model's, over {part['inputs']:,} inputs of its own trajectories; 1 is as much as predicting nothing. All "
        f"orders ran in {part['compilations']} compilation.",
    )
    found = part["found"]
    figures = [_single(found, folder), *([_centred(part, folder)] if found["skip"] else [])]
    if found.get(LOOPED):
        figures += [_loops(found, folder), _sweep(part, folder)]
    page.figures(
        figures + [_map(kind, found[f"grid {kind}"], folder) for kind in GRID if f"grid {kind}" in found], least="20rem"
    )
    if images:
        page.section(
            "What they paint",
            "The same noise and classes for every order of the layers. Distances are relative, in what the model makes. An "
            "order that errs little at each step may still ruin an image, and the other way round: errors add up.",
        )
        captions = {name: f"{distance:.2f} away from the intact model's" for name, distance in part["painted"].items()}
        figures = [_painting(name, captions.get(name, ""), painted, folder) for name, painted in images.items()]
        page.figures(figures, least="17rem")


def _errors(lines: Sequence[Part]) -> list[float]:
    return [line["error"] for line in lines]


def _spans(lines: Sequence[Part]) -> list[list[int]]:
    """The spans that occur, the smallest first."""
    return sorted(map(list, {tuple(line["span"]) for line in lines}), key=lambda span: span[1] - span[0])


def _on(part: Part, span: list[int]) -> dict[str, list[float]]:
    """Errors on one of the paper's spans by kind of strategy, all of random's, of looped parallel's only the best K's."""
    found = {kind: [line for line in part["found"].get(kind, ()) if line["span"] == span] for kind in KINDS}
    if looped := found.pop(LOOPED):
        best = min(looped, key=lambda line: line["error"])
        found[f"looped {loops_of(best)}x"] = [best]
    return {kind: _errors(lines) for kind, lines in found.items() if lines}


def _single(found: Part, folder: Path) -> Figure:
    series = {
        "skip this": (range(len(found["single"])), _errors(found["single"]), None),
        "switch with next": (range(len(found["switch"])), _errors(found["switch"]), None),
    }
    return drawn(folder, "painters-single", "One layer", "", pictures.lines, series, x="layer", y="error", log=True)


def _centred(part: Part, folder: Path) -> Figure:
    """Error over the number of layers affected, a line per strategy."""
    spans = _spans(part["found"]["skip"])
    points: dict[str, list[tuple[int, float, float]]] = {}
    for span in spans:
        for name, errors in _on(part, span).items():
            line = points.setdefault("looped, best K" if name.startswith("looped") else name, [])
            line.append((span[1] - span[0], statistics.fmean(errors), statistics.pstdev(errors)))
    series = {}
    for name, line in points.items():
        widths, means, spreads = zip(*line, strict=True)
        series[name] = (widths, means, spreads if name == "random" else None)
    caption = f"The M middle layers. Random: mean and standard deviation of {part['seeds']} orders."
    return drawn(
        folder,
        "painters-centred",
        "Middle spans",
        caption,
        pictures.lines,
        series,
        x="layers affected, M",
        y="error",
        log=True,
    )


def _loops(found: Part, folder: Path) -> Figure:
    series = {}
    for span in _spans(found[LOOPED])[-len(pictures.COLOURS) :]:
        lines = [line for kind in ("parallel", LOOPED) for line in found[kind] if line["span"] == span]
        series[f"M = {span[1] - span[0]}"] = (list(map(loops_of, lines)), _errors(lines), None)
    caption = "M middle layers in parallel, K times. For small updates residual algebra foretells the best K at M."
    return drawn(folder, "painters-loops", "Looped parallel", caption, pictures.lines, series, x="K", y="error", log=True)


def _sweep(part: Part, folder: Path) -> Figure:
    lo, hi = part["shown"]
    errors = np.array(_errors(part["found"]["sweep"])).reshape(len(part["loops"]), -1)
    return drawn(
        folder, "painters-sweep", f"K and α, layers {lo} to {hi - 1}", f"x + α · mean of the {hi - lo} updates, K times.",
        pictures.heatmap, errors, x="α", y="K", scale="error", rows=part["loops"],
        columns=[f"{alpha:g}" for alpha in part["alphas"]], limits=(0, 1), numbers=".2f",
    )  # fmt: skip


def _map(kind: str, lines: Sequence[Part], folder: Path) -> Figure:
    """Error of one strategy on every span of the grid."""
    rows, columns = (sorted({line["span"][i] for line in lines}) for i in (0, 1))
    values = np.full((len(rows), len(columns)), np.nan)
    for line in lines:
        values[rows.index(line["span"][0]), columns.index(line["span"][1])] = line["error"]
    return drawn(
        folder, f"painters-{kind}", f"{kind.capitalize()} any span", "", pictures.heatmap, values, x="to before layer",
        y="from layer", scale="error", rows=rows, columns=columns, limits=(0, 1), numbers=".2f",
    )  # fmt: skip


def _painting(name: str, caption: str, painted: np.ndarray, folder: Path) -> Figure:
    path = folder / f"painted-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.png"
    columns, scale = -(-len(painted) // 2), max(1, 64 // painted.shape[1])
    with replacing(path) as temporary:
        grids.save_png(temporary, grids.grid(grids.to_uint8(painted), columns, scale=scale))
    return Figure(path, name, caption, sharp=painted.shape[1] < 64)
