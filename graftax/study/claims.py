"""What is said of layers as painters, asked of what was measured: eight questions, and claims that are true or false.

The questions are those of "Transformer Layers as Painters" (arXiv 2407.09298), Section 1. R1 to R6 restate what has been
seen, by eye, on pictures of Flux-schnell, SD3-medium and AuraFlow v0.2 with the prompts of `blog_prompts.txt`; R7 and R8 are
the paper's findings of language models. All are judged by the error of the prediction; distances of the final pictures stand
beside it. A claim about a family is not testable on another.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Part = Mapping[str, Any]
TRUE, FALSE, OPEN = "true", "false", "not testable here"
LOOPED = "looped parallel"

STRONG = 3.0
"""Times the median from which one layer's error is far above that of the others."""

CONTRAST = ("flux", "auraflow", "sd3")
"""Families by how clear their groups of layers are said to be, the clearest first."""


@dataclass(frozen=True)
class Claim:
    """A claim and what was found of it.

    Attributes:
        name: "R1".
        text: what is claimed.
        verdict: `TRUE`, `FALSE` or `OPEN`.
        numbers: that it rests on, or why it cannot be told.
    """

    name: str
    text: str
    verdict: str
    numbers: str


def claims(found: Part, beside: Sequence[Part] = ()) -> list[Claim]:
    """R1 to R8 of what `graftax.study.painting.measure` found; `beside`: what it found of other models, for R6."""
    judged: dict[str, tuple[str, tuple[str, str]]] = {
        "R1": ("Repeating the middle layer is worse than skipping, on every span.", _repeat(found)),
        "R2": (
            "Skipping the first two-stream layer is far worse than skipping others in SD3 and AuraFlow, mild in Flux.",
            _first(found),
        ),
        "R3": ("Flux: looping helps parallel layers in double blocks, not in single ones.", _loop(found)),
        "R4": ("SD3: repeated or parallel, the lower half suffers more than the upper.", _halves(found)),
        "R5": ("AuraFlow: skipping the first or the last single-stream layer hurts less than the middle.", _ends(found)),
        "R6": ("Groups of layers are clearest in Flux, then AuraFlow, then SD3.", _contrast([found, *beside])),
        "R7": ("Layers in random order are better than reversed.", _random(found)),
        "R8": ("Looping helps parallel layers, and the best number of rounds is near that of the layers.", _rounds(found)),
    }
    return [Claim(name, text, *verdict) for name, (text, verdict) in judged.items()]


def answers(found: Part) -> list[tuple[str, str]]:
    """The paper's eight questions, each with what was measured."""
    similar = found["similarity"]["all"]["sample"]
    single = sorted(found["single"], key=lambda line: line["error"])
    spared = sum(line["error"] < 0.1 for line in single)

    def main(*kinds: str) -> str:
        return "; ".join(f"{one['name']}: {_said(one, kinds)}" for one in found["stretches"])

    return [
        (
            "Do layers use one space of representations?",
            f"States fall into the groups {_ranges(similar['groups'])}; mean cosine within less between groups "
            f"{similar['contrast']:.2f}.",
        ),
        (
            "Are all layers needed?",
            f"Left out alone, {spared} of {len(single)} change the prediction by less than a tenth; least position "
            f"{single[0]['span'][0]} ({_both(single[0])}), most position {single[-1]['span'][0]} ({_both(single[-1])}).",
        ),
        ("Do middle layers all do the same?", main("middle repeat", "skip")),
        ("Does the order matter?", main("reverse", "random")),
        ("Can layers run in parallel?", main("parallel")),
        ("Does the order matter more for some prompts?", _prompts(found)),
        ("Does looping help parallel layers?", main("parallel", LOOPED)),
        ("Which variant harms least?", "; ".join(f"{one['name']}: {_ranked(one)}" for one in found["stretches"])),
    ]


def summary(found: Part, beside: Sequence[Part] = ()) -> list[str]:
    """A line for each claim."""
    return [f"{one.name} {one.verdict}: {one.text} {one.numbers}" for one in claims(found, beside)]


# --- Claims ----------------------------------------------------------------------------------------------------------


def _repeat(found: Part) -> tuple[str, str]:
    pairs = [
        (line, skip)
        for one in found["stretches"]
        for line in one["spans"] if line["kind"] == "middle repeat"
        for skip in one["spans"] if skip["kind"] == "skip" and skip["span"] == line["span"]
    ]  # fmt: skip
    worse = {key: sum(repeat[key] > skip[key] for repeat, skip in pairs) for key in ("error", "distance")}
    numbers = f"Worse on {worse['error']} of {len(pairs)} spans by the prediction, on {worse['distance']} by the pictures."
    return _verdict(worse["error"] == len(pairs)), numbers


def _first(found: Part) -> tuple[str, str]:
    one = next((one for one in found["stretches"] if one["joint"]), None)
    if one is None or found["backbone"] not in CONTRAST:
        return OPEN, "The claim is of Flux, SD3 and AuraFlow."
    lines = _single_of(found, one)
    median = statistics.median(line["error"] for line in lines[1:])
    ratio = lines[0]["error"] / median
    far = found["backbone"] != "flux"
    return _verdict((ratio > STRONG) == far), f"{_both(lines[0])}, {ratio:.1f} times the median of the other layers."


def _loop(found: Part) -> tuple[str, str]:
    parts = {one["joint"]: one for one in found["stretches"] if one["joint"] is not None}
    if found["backbone"] != "flux" or set(parts) != {True, False} or not _lines(parts[True], LOOPED):
        return OPEN, "The claim is of Flux, with blocks of both kinds that are not parallel yet."
    helps = {joint: _mean(one, LOOPED) < _mean(one, "parallel") for joint, one in parts.items()}
    numbers = "; ".join(f"{one['name']}: {_said(one, ('parallel', LOOPED))}" for one in parts.values())
    return _verdict(helps[True] and not helps[False]), f"{numbers}."


def _halves(found: Part) -> tuple[str, str]:
    one = next((one for one in found["stretches"] if one["joint"] and one["halves"]), None)
    if found["backbone"] != "sd3" or one is None:
        return OPEN, "The claim is of SD3, of six layers or more."
    kinds = [kind for kind in ("middle repeat", "parallel") if _lines(one, kind)]
    lower, upper = ({kind: _lines(one, kind, half)[0] for kind in kinds} for half in one["halves"])
    worse = [lower[kind]["error"] > upper[kind]["error"] for kind in kinds]
    numbers = "; ".join(f"{kind}: lower {_both(lower[kind])}, upper {_both(upper[kind])}" for kind in kinds)
    return _verdict(all(worse)), f"{numbers}. Halves: {_ranges(one['halves'])}."


def _ends(found: Part) -> tuple[str, str]:
    one = next((one for one in found["stretches"] if one["joint"] is False), None)
    lines = [] if one is None else _single_of(found, one)
    if found["backbone"] != "auraflow" or len(lines) < 3:
        return OPEN, "The claim is of AuraFlow, of three single-stream layers or more."
    middle = statistics.median(line["error"] for line in lines[1:-1])
    numbers = f"First {_both(lines[0])}, last {_both(lines[-1])}; the median between them {middle:.3f}."
    return _verdict(max(lines[0]["error"], lines[-1]["error"]) < middle), numbers


def _contrast(several: Sequence[Part]) -> tuple[str, str]:
    measured = {one["backbone"]: one["similarity"]["all"]["sample"]["contrast"] for one in reversed(several)}
    numbers = ", ".join(f"{name} {value:.2f}" for name, value in measured.items())
    if missing := [name for name in CONTRAST if name not in measured]:
        return OPEN, f"Contrast: {numbers}; what was found of {' and '.join(missing)} is missing beside it."
    first, second, third = (measured[name] for name in CONTRAST)
    return _verdict(first > second > third), f"Contrast: {numbers}."


def _random(found: Part) -> tuple[str, str]:
    better = [_mean(one, "random") < _mean(one, "reverse") for one in found["stretches"]]
    numbers = "; ".join(f"{one['name']}: {_said(one, ('random', 'reverse'))}" for one in found["stretches"])
    return _verdict(all(better)), f"{numbers}. Mean and spread of {found['orders']} orders."


def _rounds(found: Part) -> tuple[str, str]:
    parts = [one for one in found["stretches"] if one.get("sweep")]
    if not parts:
        return OPEN, "The program has steps that are parallel already."
    near, numbers = [], []
    for one in parts:
        m = one["main"][1] - one["main"][0]
        plain = [line for line in one["sweep"] if setting(line)[1] == 1]
        best, overall = (min(lines, key=lambda line: line["error"]) for lines in (plain, one["sweep"]))
        rounds, (k, alpha) = setting(best)[0], setting(overall)
        near.append(rounds > 1 and m / 2 <= rounds <= 2 * m)
        numbers.append(
            f"{one['name']}: of {m} layers best at {rounds} rounds ({_both(best)}), of all at K {k}, alpha {alpha:g}, "
            f"K alpha / M {k * alpha / m:.2f} ({_both(overall)})"
        )
    return _verdict(all(near)), f"{'; '.join(numbers)}."


# --- Lines -----------------------------------------------------------------------------------------------------------


def setting(line: Part) -> tuple[int, float]:
    """K and alpha of a line of "looped parallel"."""
    values = line["program"].partition("loops=")[2].rstrip(")").split(", alpha=")
    return int(values[0]), float(values[1])


def on_main(one: Part, kind: str) -> list[Part]:
    """A strategy's lines on the main span of a stretch, all random orders."""
    return _lines(one, kind) + (list(one["random"]) if kind == "random" else [])


def _lines(one: Part, kind: str, span: Sequence[int] | None = None) -> list[Part]:
    wanted = list(span or one["main"])
    return [line for line in one["spans"] if line["kind"] == kind and line["span"] == wanted]


def _mean(one: Part, kind: str, key: str = "error") -> float:
    return statistics.fmean(line[key] for line in on_main(one, kind))


def _single_of(found: Part, one: Part) -> list[Part]:
    lo, hi = one["span"]
    return [line for line in found["single"] if lo <= line["span"][0] < hi]


def _said(one: Part, kinds: Sequence[str]) -> str:
    """Strategies on the main span with what they cost."""
    texts = []
    for kind in kinds:
        lines = on_main(one, kind)
        if len(lines) == 1:
            texts.append(f"{kind} {_both(lines[0])}")
        elif lines:
            errors = [line["error"] for line in lines]
            spread = statistics.stdev(errors) if all(map(math.isfinite, errors)) else math.inf
            texts.append(f"{kind} {_mean(one, kind):.3f} ± {spread:.3f} (pictures {_mean(one, kind, 'distance'):.2f})")
    return ", ".join(texts)


def _ranked(one: Part) -> str:
    kinds = dict.fromkeys(line["kind"] for line in one["spans"])
    return " < ".join(f"{kind} {_mean(one, kind):.2f}" for kind in sorted(kinds, key=lambda kind: _mean(one, kind)))


def _prompts(found: Part) -> str:
    """How far apart the prompts are that a new order harms least and most."""
    one = found["stretches"][-1]
    lines = on_main(one, "random") + on_main(one, "reverse")
    means = [statistics.fmean(values) for values in zip(*(line["distances"] for line in lines), strict=True)]
    order: Callable[[int], float] = means.__getitem__
    least, most = (choose(range(len(means)), key=order) for choose in (min, max))
    said = f"{means[least]:.2f} for prompt {least + 1} to {means[most]:.2f} for prompt {most + 1}"
    return f"Pictures of reordered layers ({one['name']}) differ by {said}."


def _both(line: Part) -> str:
    return f"{line['error']:.3f} (pictures {line['distance']:.2f})"


def _ranges(groups: Sequence[Sequence[int]]) -> str:
    return ", ".join(f"{lo}..{hi - 1}" if hi - lo > 1 else str(lo) for lo, hi in groups)


def _verdict(holds: bool) -> str:
    return TRUE if holds else FALSE
