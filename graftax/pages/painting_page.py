"""The page of layers as painters: eight questions, prompts, heat-maps, pictures from one noise, claims with verdicts."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graftax.analyze import pictures
from graftax.analyze.strategies import KINDS
from graftax.checkpoint.files import filling, replacing
from graftax.data.pixels.decoding import Decode
from graftax.errors import BadInput
from graftax.evaluate import pictures as grids
from graftax.evaluate.drawing import in_rows
from graftax.evaluate.report import Figure, Report
from graftax.pages import common
from graftax.pages.painters_page import drawn
from graftax.study.claims import OPEN, TRUE, answers, claims, on_main, setting, summary
from graftax.study.painting import Painted

Part = Mapping[str, Any]
FOUND, PAGE = "painters.json", "painters.html"

SIDE = 192
"""Pixels of a picture on the page, about; larger ones are averaged down to it."""

MOST_PROMPTS = 8
"""Prompts whose pictures are on the page."""

STREAMS = {"all": "all streams", "img": "the image", "txt": "the text"}
FORMS = {"sample": "whole samples", "token": "token by token"}


def read(folder: str | Path) -> dict[str, Any]:
    """What another page's folder found. Raises `BadInput` where there is none."""
    path = Path(folder) / FOUND
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        raise BadInput(f"{path}: cannot be read, expected what `graftax painters` writes") from None


def write(model: str, painted: Painted, folder: Path, decode: Decode | None, beside: Sequence[Part] = ()) -> list[str]:
    """Write what was found as JSON, the pictures and the page into `folder`; returns the verdicts, a line each.

    `decode`: from the model's arrays to pixels, None: no pictures are shown; `beside`: what was found of other models.
    """
    found = {"model": model, **painted.found}
    with filling(folder) as fresh:
        (fresh / FOUND).write_text(json.dumps(found, indent=1) + "\n")
        page = Report(
            f"The layers of {Path(model).name} as painters",
            "No weight changes, only the order of the layers: skipped, repeated, reversed, shuffled, run in parallel.",
        )
        judged = claims(found, beside)
        counts = [sum(one.verdict == verdict for one in judged) for verdict in (TRUE, OPEN)]
        page.verdict(
            f"Of {len(judged)} claims {counts[0]} are true here, {counts[1]} are not testable here.", *_least(found)
        )
        page.section("Eight questions", "Errors are of the main span of each stretch of layers, as described below.")
        for i, (question, answer) in enumerate(answers(found)):
            page.paragraphs(f"{i + 1}. {question} {answer}")
        page.section("Prompts", f"Conditions: {found['source']}.")
        page.paragraphs(*(f"{i + 1}. {text}" for i, text in enumerate(found["prompts"])))
        _similarity(page, found["similarity"], fresh)
        _layers(page, found, fresh)
        for one in found["stretches"]:
            _stretch(page, found, one, painted.pictures[one["name"]], decode, fresh)
        page.section("Claims", "Each with its verdict on this model, judged by the error of the prediction.")
        page.paragraphs(*(f"{one.name}: {one.text} {one.verdict.upper()}. {one.numbers}" for one in judged))
        page.section("Protocol", _protocol(found))
        page.write(fresh / PAGE, common.footer())
    return [*summary(found, beside), f"Report: {folder / PAGE}"]


def _least(found: Part) -> list[str]:
    """The strategy that harms least and the one that harms most, by stretch."""
    lines = []
    for one in found["stretches"]:
        spans = sorted((line for line in one["spans"] if line["span"] == one["main"]), key=lambda line: line["error"])
        least, most = spans[0], spans[-1]
        lines.append(
            f"{one['name']}: least harm {least['kind']} ({least['error']:.2f}), most {most['kind']} ({most['error']:.2f})."
        )
    return lines


def _similarity(page: Report, similarity: Part, folder: Path) -> None:
    page.section(
        "Similarity of states",
        "State i is what position i of the program reads, the last one what the last position leaves; cosines are averaged "
        "over prompts and times. Frames: the cut into three contiguous groups of least scatter.",
    )
    figures = []
    for stream, forms in similarity.items():
        for form, one in forms.items():
            states = range(len(one["cosine"]))
            caption = f"Within less between groups {one['contrast']:.2f}."
            figures.append(
                drawn(
                    folder, f"similarity-{stream}-{form}", f"{STREAMS.get(stream, stream).capitalize()}, {FORMS[form]}",
                    caption, pictures.heatmap, one["cosine"], x="state", y="state", scale="cosine", rows=states,
                    columns=states, boxes=one["groups"],
                )
            )  # fmt: skip
    page.figures(figures, least="20rem")


def _layers(page: Report, found: Part, folder: Path) -> None:
    page.section("One layer", "Each position left out alone, or exchanged with the next one of its kind.")
    series = {
        name: ([line["span"][0] for line in found[key]], [line["error"] for line in found[key]], None)
        for key, name in (("single", "skip"), ("switch", "switch with next")) if found[key]
    }  # fmt: skip
    distances = [line["distance"] for line in found["single"]]
    positions = [line["span"][0] for line in found["single"]]
    page.figures(
        [
            drawn(
                folder, "single-error", "Error of the prediction", "", pictures.lines, series, x="position",
                y="relative error", log=True,
            ),
            drawn(
                folder, "single-distance", "Distance of the pictures", "Skipped; from the same noise.", pictures.lines,
                {"skip": (positions, distances, None)}, x="position", y="relative distance", log=True,
            ),
        ],
        least="20rem",
    )  # fmt: skip


def _stretch(
    page: Report, found: Part, one: Part, painted: Mapping[str, np.ndarray], decode: Decode | None, folder: Path
) -> None:
    (lo, hi), (first, last) = one["span"], one["main"]
    page.section(
        f"Layers {one['name']}",
        f"Positions {lo} to {hi - 1}. Main span: {first} to {last - 1}. The error of the prediction is relative, over all "
        "inputs; 1 is as much as predicting nothing. Distances are of the final arrays, drawn from the same noise.",
    )
    page.table(["strategy", "positions", "error", "distance of pictures"], _rows(one))
    slug = _slug(one["name"])
    figures = [_over_time(found, one, folder, slug)]
    if one.get("sweep"):
        figures.append(_sweep(one, folder, slug))
    page.figures(figures, least="20rem")
    if decode is None:
        page.paragraphs("No pictures: these arrays have no decoder here (--latents).")
        return
    page.figures([_pictures(one, painted, decode, folder, slug)], least="40rem")


def _rows(one: Part) -> list[list[str]]:
    """The lines of a stretch's spans, the smallest span first, of random orders the mean on the main span."""
    rows = []
    for line in sorted(one["spans"], key=lambda line: (line["span"][1] - line["span"][0], line["span"][0])):
        several = on_main(one, "random") if line["kind"] == "random" and line["span"] == one["main"] else [line]
        error, distance = (statistics.fmean(each[key] for each in several) for key in ("error", "distance"))
        lo, hi = line["span"]
        rows.append([line["kind"], f"{lo}..{hi - 1}", f"{error:.3f}", f"{distance:.3f}"])
    return rows


def _over_time(found: Part, one: Part, folder: Path, slug: str) -> Figure:
    series = {}
    for kind in KINDS:
        if lines := on_main(one, kind):
            errors = [statistics.fmean(values) for values in zip(*(_seen(line) for line in lines), strict=True)]
            series[kind] = (_times(lines[0]), errors, None)
    return drawn(
        folder, f"time-{slug}", "Error over time", "0 is data, 1 noise.", pictures.lines, series, x="share of noise",
        y="relative error", log=True, integers=False,
    )  # fmt: skip


def _seen(line: Part) -> list[float]:
    return [error for error in line["by_time"] if error is not None]


def _times(line: Part) -> list[float]:
    """The middles of the bins of time that were seen."""
    bins = len(line["by_time"])
    return [(i + 0.5) / bins for i, error in enumerate(line["by_time"]) if error is not None]


def _sweep(one: Part, folder: Path, slug: str) -> Figure:
    settings = [setting(line) for line in one["sweep"]]
    rounds, alphas = (list(dict.fromkeys(values)) for values in zip(*settings, strict=True))
    errors = np.array([line["error"] for line in one["sweep"]]).reshape(len(rounds), len(alphas))
    lo, hi = one["main"]
    return drawn(
        folder, f"sweep-{slug}", "K and α", f"x + α · mean of the {hi - lo} updates, K times.", pictures.heatmap, errors,
        x="α", y="K", scale="error", rows=rounds, columns=[f"{alpha:g}" for alpha in alphas], limits=(0, 1), numbers=".2f",
    )  # fmt: skip


def _pictures(one: Part, painted: Mapping[str, np.ndarray], decode: Decode, folder: Path, slug: str) -> Figure:
    """A row for each strategy, a column for each prompt."""
    count = min(MOST_PROMPTS, len(next(iter(painted.values()))))
    images = np.concatenate([_small(decode(arrays[:count])) for arrays in painted.values()])
    path = folder / f"painted-{slug}.png"
    with replacing(path) as temporary, temporary.open("wb") as file:
        grids.save_png(file, in_rows(list(painted))(grids.to_uint8(images)))
    caption = "A column for each prompt, all from the same noise."
    return Figure(path, f"What {one['name']} layers paint", caption, sharp=images.shape[1] < 64)


def _small(pixels: np.ndarray) -> np.ndarray:
    """Pixels (n, h, w, c) averaged over whole squares to about `SIDE`; small ones as they are."""
    n, h, w, c = pixels.shape
    by = max(1, min(h, w) // SIDE)
    cut = pixels[:, : h // by * by, : w // by * by]
    return cut.reshape(n, h // by, by, w // by, by, c).mean((2, 4))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _protocol(found: Part) -> str:
    error, draw = found["compilations"]
    return (
        f"{len(found['prompts'])} prompts with {found['each']} noises each, drawn in {found['sampling']}. Predictions were "
        f"compared on {found['inputs']:,} inputs of the intact model's own trajectories at {found['times']} times of each, "
        f"both halves of guided passes counting. All orders of the {found['steps']} positions ran in {error} compilation of "
        f"the network and {draw} of the sampler."
    )
