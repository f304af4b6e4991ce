"""The page of an analysis: pictures and one HTML file, all from the JSON that the analysis left."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from graftax.analyze import pictures
from graftax.diffusion import SAMPLERS
from graftax.evaluate.drawing import ACCURACY, FRECHET
from graftax.evaluate.report import Report
from graftax.pages import common, painters_page
from graftax.pages.painters_page import Images, Part, drawn
from graftax.study.examiners import EXACTLY, OVERALL


def write(found: Part, images: Images, folder: Path) -> Path:
    """Draw the pictures and report.html into `folder`; images: what the painters painted, (n, h, w, c) in [-1, 1]."""
    page = Report(
        f"Inside {Path(found['model']).name}",
        "What the layers of this diffusion transformer do, and what that says about where it may be edited.",
    )
    page.verdict(*verdict(found))
    sections = {"locality": _locality, "activations": _activations, "similarity": _similarity, "ablation": _ablation}
    for name, section in sections.items():
        if name in found:
            section(page, found[name], folder)
    if "painters" in found:
        painters_page.add(page, found["painters"], images, folder)
    if set(found) & {"locality", "activations", "similarity", "painters"}:
        page.section("Protocol", _protocol(found))
    page.write(folder / "report.html", common.footer())
    return folder / "report.html"


def verdict(found: Part) -> list[str]:
    """The main finding of every part, one line each."""
    lines = {
        "locality": _locality_verdict, "activations": _activations_verdict, "similarity": _similarity_verdict,
        "painters": painters_page.verdict, "ablation": _ablation_verdict,
    }  # fmt: skip
    return [text for name, say in lines.items() if name in found for text in say(found[name])]


# --- Locality ------------------------------------------------------------------------------------------------------------


def _locality_verdict(part: Part) -> list[str]:
    local = sum(mass > 0.5 for mass in part["mass"])
    first = (
        f"Locality: {local} of {len(part['blocks'])} blocks keep more than half of their attention within {part['k']} "
        f"tokens (attention that looks everywhere alike would keep {part['uniform']:.1%})."
    )
    return [first, *(f"{name} {part['share']:.0%}: {rank['selector']}" for name, rank in part["ranks"].items())]


def _locality(page: Report, part: Part, folder: Path) -> None:
    page.section(
        "Locality of attention",
        f"L_k is the share of attention that stays within k = {part['k']} tokens in raster order, averaged over heads, "
        "samples and timesteps. Blocks that are local lose little to operators that see only their neighbours.",
    )
    blocks, sweep, (by_time, times) = part["blocks"], part["sweep"], _by_time(part["by_time"])
    strong = [blocks.index(i) for i in part["ranks"]["top-local"]["blocks"]]
    page.figures(
        [
            drawn(
                folder, "locality", "Mass within the band", "Full colour: the most local blocks.", pictures.bars,
                {"L_k": part["mass"]}, blocks, x="block", y=f"L_k, k = {part['k']}", mark=("uniform", part["uniform"]),
                strong=strong,
            ),
            drawn(
                folder, "locality-k", "Every width of band", "The last row is uniform attention.", pictures.heatmap,
                [*sweep["mass"], sweep["uniform"]], x="k", y="block", scale="L_k", rows=[*blocks, "uniform"],
                columns=sweep["k"], limits=(0, 1), numbers=".2f",
            ),
            drawn(
                folder, "locality-time", "Over timesteps", "From clean (left) to noise (right).", pictures.heatmap,
                by_time, x="timestep", y="block", scale=f"L_k, k = {part['k']}", rows=blocks, columns=times,
            ),
        ],
        least="20rem",
    )  # fmt: skip
    page.text(
        "\n".join(f"graftax graft MODEL --edit '{rank['selector']}=hyena_x(kernel=4)' --out student/    # {name}"
                  for name, rank in part["ranks"].items())
    )  # fmt: skip


# --- Activations ---------------------------------------------------------------------------------------------------------


def _activations_verdict(part: Part) -> list[str]:
    lines = []
    for name, stats in part.items():
        heavy = max(range(len(stats["blocks"])), key=lambda row: stats["kurtosis"][row] or 0)
        lines.append(
            f"Activations, {name}: standard deviation {min(stats['std']):.2g} to {max(stats['std']):.2g}; heaviest tails in "
            f"block {stats['blocks'][heavy]}, kurtosis {stats['kurtosis'][heavy]:,.0f} (a Gaussian has 3), largest value "
            f"{stats['peak'][heavy] / stats['std'][heavy]:.0f} standard deviations."
        )
    return lines


def _activations(page: Report, part: Part, folder: Path) -> None:
    page.section(
        "Activations",
        "What operators put out, before adaLN's gate: the targets of stage 1. Squared errors follow the few largest values "
        "where tails are heavy (kurtosis far above 3); absolute errors do not, which is the grafting paper's reason for L1.",
    )
    names = {name: name.partition("/")[0] for name in part}
    blocks = next(iter(part.values()))["blocks"]
    rows = list(range(len(blocks)))
    shown = {
        "std": ("Spread", "standard deviation"),
        "kurtosis": ("Tails", "kurtosis"),
        "peak": ("Extremes", "largest |value|"),
    }
    figures = [
        drawn(
            folder, f"activations-{key}", title, "", pictures.lines,
            {names[name]: (rows, stats[key], None) for name, stats in part.items()}, x="layer", y=label, log=True,
            mark=("Gaussian", 3) if key == "kurtosis" else None,
        )
        for key, (title, label) in shown.items()
    ]  # fmt: skip
    for name, stats in part.items():
        by_time, times = _by_time(stats["std_by_time"])
        figures.append(
            drawn(
                folder, f"activations-time-{names[name]}", f"Spread over timesteps, {names[name]}", "", pictures.heatmap,
                by_time, x="timestep", y="block", scale="standard deviation", rows=blocks, columns=times,
            )
        )  # fmt: skip
    page.figures(figures, least="20rem")


# --- Similarity ----------------------------------------------------------------------------------------------------------


def _similarity_verdict(part: Part) -> list[str]:
    return [
        f"Groups of states by {form} cosine: {_groups(one['groups'])}; mean similarity within less between groups "
        f"{one['contrast']:.2f}."
        for form, one in part.items()
    ]


def _similarity(page: Report, part: Part, folder: Path) -> None:
    page.section(
        "Similarity of residual states",
        "State i is what layer i reads, the last one what the last layer leaves. Frames: the cut into three contiguous "
        "groups with the least scatter of states about their group's mean (kernel change-point detection). A layer between "
        "two groups translates from one to the other; layers within a group share a space, and may be skipped or reordered.",
    )
    figures = []
    for form, one in part.items():
        states = range(len(one["cosine"]))
        finer = f"Cut until 90 % of the scatter is explained: {_groups(one['finer'])}."
        figures.append(
            drawn(
                folder, f"similarity-{form}", f"Cosine of whole {form}s", finer, pictures.heatmap, one["cosine"], x="state",
                y="state", scale="cosine", rows=states, columns=states, boxes=one["groups"],
            )
        )  # fmt: skip
    page.figures(figures, least="20rem")


def _groups(groups: list[list[int]]) -> str:
    return ", ".join(f"{lo}..{hi - 1}" if hi - lo > 1 else str(lo) for lo, hi in groups)


# --- Ablation ------------------------------------------------------------------------------------------------------------


def _ablation_verdict(part: Part) -> list[str]:
    lines = []
    for slot in part["slots"]:
        found = _by_objective(part, slot, lambda line: line["output error"])
        means = sorted((statistics.fmean(values), name) for name, values in found.items())
        ranked = ", ".join(f"{name} {mean:.4f}" for mean, name in means)
        lines.append(f"Objectives for {slot} operators, by error of the model's output, best to worst: {ranked}.")
    return lines


def _ablation(page: Report, part: Part, folder: Path) -> None:
    page.section(
        "Objectives of stage 1",
        f"Layers grafted onto themselves with random weights, taught for {part['steps']} steps of {part['batch']} under "
        "each objective from the same start on the same batches, and plugged in without fine-tuning. Held-out losses are "
        "given for all objectives, whichever was trained on; output error is that of the whole model's prediction.",
    )
    columns: dict[str, Callable[[Part], Any]] = {
        "operators' relative error": lambda line: line["error"],
        **{f"held-out {name}": lambda line, name=name: line["losses"][name] for name in ("l1", "l2", "huber")},
        "output error": lambda line: line["output error"],
    }
    scored = [one for one in (FRECHET, ACCURACY, OVERALL, EXACTLY) if one.key in part["teacher"]]
    columns |= {one.title: lambda line, key=one.key: line[key] for one in scored}
    rows = []
    for slot in part["slots"]:
        for objective in _by_objective(part, slot, bool):
            cells = [_spread(_by_objective(part, slot, value)[objective]) for value in columns.values()]
            rows.append([f"{slot}, {objective}", *cells])
    if part["teacher"]:
        own = [_spread([part["teacher"][one.key]]) for one in scored]
        rows.append(["teacher", *[""] * (len(columns) - len(own)), *own])
    page.table(["", *columns], rows)


def _by_objective(part: Part, slot: str, value: Callable[[Part], Any]) -> dict[str, list[float]]:
    """Values over seeds by objective."""
    found: dict[str, list[float]] = {}
    for line in part["lines"]:
        if line["slot"] == slot:
            found.setdefault(line["objective"], []).append(value(line))
    return found


def _spread(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.4g}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2g}"


# --- Protocol ------------------------------------------------------------------------------------------------------------


def _protocol(found: Part) -> str:
    asked = found["protocol"]
    how = asked["sampling"]
    return (
        f"{asked['samples']} samples watched over {how['steps']} steps of {SAMPLERS[how['sampler']]}, guidance "
        f"{how['cfg_scale']:g} (both halves of the guided pass count), classes spread evenly, seed {how['seed']}; "
        f"strategies measured on {asked['painted']} samples at about ten steps. Images are drawn in the same way."
    )


def _by_time(values: Any) -> tuple[np.ndarray, list[str]]:
    """Values (blocks, bins) of the bins of timesteps that were seen, and where these bins begin; few steps miss some."""
    by_time = np.array(values, float)
    seen = [i for i, line in enumerate(by_time) if not np.isnan(line).all()]
    return by_time[seen].T, [str(1000 * i // len(by_time)) for i in seen]
