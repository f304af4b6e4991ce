"""A table like GenEval's, of pictures whose truth the judge reads: GenEval's own rules on what it saw."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graftax.data.scenes import Caption, parse, prompts
from graftax.data.scenes.caption import CATEGORIES
from graftax.errors import BadInput
from graftax.evaluate.geneval import Detection, Prompt, Scores, Verdict, Wanted, faults
from graftax.evaluate.protocol import Protocol
from graftax.evaluate.scenes.reading import JUDGE, Reading, read
from graftax.evaluate.tables import aligned

EXACT = "exact"


@dataclass(frozen=True)
class SceneScores(Scores):
    """What was found of pictures of scenes; their tasks are GenEval's six, mixed captions count for `exact` alone.

    Attributes:
        exact: of every picture, whether it shows what its caption says and nothing else.
    """

    exact: tuple[bool, ...]

    @property
    def scores(self) -> dict[str, float]:
        """As in `Scores`, and the share of pictures that are exact."""
        return {**super().scores, EXACT: sum(self.exact) / len(self.exact)}

    @property
    def reference(self) -> str:
        """The captions, by number and hash."""
        told = "\n".join(one.prompt.text for one in self.verdicts)
        return f"{len(self.verdicts):,} captions of scenes, {hashlib.sha256(told.encode()).hexdigest()[:12]}"

    def protocol(self, drawn: Protocol) -> Protocol:
        """How the pictures were drawn, and now also what they were judged by and on which captions."""
        return dataclasses.replace(drawn, features=self.judge, reference=self.reference)

    def table(self) -> str:
        """A line for each task, in per cent, and overall, with the pictures that it is of."""
        tasks = [[name, f"{100 * right / total:.1f} %", f"{right}/{total}"] for name, (right, total) in self.tasks.items()]
        others = [[name, f"{100 * self.scores[name]:.1f} %", ""] for name in ("overall", EXACT)]
        return "\n".join(aligned([*tasks, *others]))


def prompt_set(count: int, split: str = "heldout", seed: int = 0) -> list[Caption]:
    """`count` captions of each of GenEval's six categories, one category after the other (`graftax.data.scenes.prompts`)."""
    return [caption for category in CATEGORIES for caption in prompts(category, count, split, seed)]


def score(images: np.ndarray, captions: Sequence[Caption | str]) -> SceneScores:
    """Judge pictures (b, 64, 64, 3), uint8 or float in [-1, 1], each by its own caption.

    A picture is right or wrong as a whole, by GenEval's rules: of a kind the clearest things, as many as the caption asks
    for, must be there, have its colour, and stand where it says; where it asks for two or more, there must be no other of
    the kind. Things that it does not speak of do no harm, except to `exact`. Raises `BadInput` where captions are not
    understood or not one for each picture.
    """
    if not len(captions) or len(images) != len(captions):
        raise BadInput(f"pictures of scenes: {len(images)} with {len(captions)} captions, expected one for each, and any")
    told = [parse(caption) if isinstance(caption, str) else caption for caption in captions]
    if not any(caption.category in CATEGORIES for caption in told):
        raise BadInput(f"captions of scenes: all of them mixed, as {str(told[0])!r}, expected some of {CATEGORIES}")
    readings = read(images)
    verdicts = tuple(
        Verdict(f"{i:05d}", prompt := as_prompt(caption), tuple(faults(prompt, detections(reading))))
        for i, (caption, reading) in enumerate(zip(told, readings, strict=True))
    )
    exact = (
        not verdict.faults and _counts(reading) == Counter({(g.kind, g.colour): g.count for g in caption.groups})
        for verdict, caption, reading in zip(verdicts, told, readings, strict=True)
    )
    return SceneScores(verdicts, JUDGE, tuple(exact))


def as_prompt(caption: Caption) -> Prompt:
    """What GenEval's rules ask of a caption's picture: the second group first, to which the first one stands."""
    position = None if caption.relation is None else (caption.relation, 0)
    *second, first = reversed(caption.groups)
    include = (
        *(Wanted(group.kind, group.count, group.colour) for group in second),
        Wanted(first.kind, first.count, first.colour, position),
    )
    exclude = tuple(Wanted(group.kind, group.count + 1) for group in caption.groups if group.count > 1)
    return Prompt.of(caption.category, str(caption), include, exclude)


def detections(reading: Reading) -> dict[str, list[Detection]]:
    """What the judge saw in a picture, by kind, the clearest first."""
    found: dict[str, list[Detection]] = {}
    for match, thing in sorted(zip(reading.matches, reading.things, strict=True), key=lambda seen: -seen[0]):
        half = thing.size / 2
        box = thing.x - half, thing.y - half, thing.x + half, thing.y + half
        found.setdefault(thing.kind, []).append(Detection(thing.kind, box, match, thing.colour))
    return found


def _counts(reading: Reading) -> Counter[tuple[str, str | None]]:
    return Counter((thing.kind, thing.colour) for thing in reading.things)
