"""GenEval's rules: whether one picture shows what its prompt asks for.

As the official evaluator decides it (evaluation/evaluate_images.py of github.com/djghosh13/geneval, its defaults): a picture
is right or wrong as a whole, and of a class only the most confident objects, as many as the prompt asks for, are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from graftax.errors import BadInput
from graftax.evaluate.geneval.detections import Detection
from graftax.evaluate.geneval.prompts import COLORS, Prompt, Wanted

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
"""Scores above which an object counts, and that of the task "counting"."""

MOST = 16
"""Objects of a class that are kept."""

SLACK = 0.1
"""Share of both objects' sizes by which their centres must be apart, along an axis, for that axis to count at all."""

DIRECTION = 0.5
"""Part of the distance of two objects' centres that must be along an axis for a relation: the cosine of 60 degrees."""

NOTHING = 1e-3
"""Pixels below which centres are not apart."""

Objects = Mapping[str, Sequence[Detection]]
"""Of a picture by class, the most confident first."""


def kept(found: Sequence[Detection], tag: str) -> dict[str, list[Detection]]:
    """The objects of a picture that count for the task `tag`, by class, the most confident first, of equal ones the last."""
    least = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    objects: dict[str, list[Detection]] = {}
    for one in sorted(reversed(found), key=lambda one: one.score, reverse=True):
        if one.score > least and len(objects.setdefault(one.name, [])) < MOST:
            objects[one.name].append(one)
    return objects


def relations(box: tuple[float, ...], other: tuple[float, ...]) -> frozenset[str]:
    """Where `box` is relative to `other`, both (x0, y0, x1, y1): "left of", "right of", "above", "below", none or two of them.

    The offset of the centres, on each axis shortened by `SLACK` of both extents there (to no less than zero), over the
    length of the whole offset, must exceed `DIRECTION`.
    """
    a, b = (np.array(one).reshape(2, 2) for one in (box, other))  # corners x axes
    offset = a.mean(0) - b.mean(0)
    gap = np.maximum(np.abs(offset) - SLACK * (np.ptp(a, axis=0) + np.ptp(b, axis=0)), 0) * np.sign(offset)
    if (np.abs(gap) < NOTHING).all():
        return frozenset()
    x, y = gap / np.linalg.norm(offset)
    holds = {"left of": x < -DIRECTION, "right of": x > DIRECTION, "above": y < -DIRECTION, "below": y > DIRECTION}
    return frozenset(name for name, true in holds.items() if true)


def faults(prompt: Prompt, objects: Objects) -> list[str]:
    """Why a picture with these objects is wrong, a line for each entry of the prompt that fails; none where it is right."""
    found: list[str] = []
    matched: list[Sequence[Detection] | None] = []  # of each entry of `include`, what others may be relative to
    for wanted in prompt.include:
        these = objects.get(wanted.name, ())[: wanted.count]
        fault = _count(wanted, these) or _color(wanted, these) or _position(wanted, these, matched)
        matched.append(None if fault else these)
        found += [fault] if fault else []
    for wanted in prompt.exclude:
        if (many := len(objects.get(wanted.name, ()))) >= wanted.count:
            found.append(f"expected fewer than {wanted.count} {wanted.name}, found {many}")
    return found


def _count(wanted: Wanted, these: Sequence[Detection]) -> str:
    few = len(these) < wanted.count
    return f"expected {wanted.count} {wanted.name} or more, found {len(these)}" if few else ""


def _color(wanted: Wanted, these: Sequence[Detection]) -> str:
    """Raises `BadInput` where nobody has looked at the colour."""
    if wanted.color is None:
        return ""
    seen = [one.color for one in these]
    if None in seen:
        raise BadInput(f"object {wanted.name} of score {these[seen.index(None)].score:.3g}: no color, which the prompt asks for")
    if all(color == wanted.color for color in seen):
        return ""
    others = ", ".join(f"{seen.count(color)} {color}" for color in COLORS if color in seen)
    return f"expected {wanted.count} {wanted.color} {wanted.name}, found {others}"


def _position(wanted: Wanted, these: Sequence[Detection], matched: Sequence[Sequence[Detection] | None]) -> str:
    """All of these must stand so to all that the earlier entry has matched."""
    if wanted.position is None:
        return ""
    relation, index = wanted.position
    if (others := matched[index]) is None:
        return f"expected {wanted.name} {relation} what was not found"
    for one in these:
        for other in others:
            if relation not in (true := relations(one.box, other.box)):
                so = " and ".join(sorted(true)) or "neither beside nor above nor below"
                return f"expected {wanted.name} {relation} {other.name}, found it {so}"
    return ""
