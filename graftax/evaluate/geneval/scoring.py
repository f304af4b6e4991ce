"""GenEval's scores: every picture of a folder judged by its detections, the shares that are right, and what gave them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftax.checkpoint.files import made, replacing
from graftax.errors import BadInput, naming
from graftax.evaluate.geneval.detections import Detections
from graftax.evaluate.geneval.folder import Drawn
from graftax.evaluate.geneval.prompts import TASKS, Prompt
from graftax.evaluate.geneval.rules import faults, kept
from graftax.evaluate.result import Result, environment

OVERALL, IMAGES, PROMPTS = "overall", "correct images", "correct prompts"
VERDICTS = "verdicts.json"


@dataclass(frozen=True)
class Verdict:
    """What was found of one picture.

    Attributes:
        image: its path in the folder.
        prompt: what it should show.
        faults: why it is wrong; empty where it is right.
    """

    image: str
    prompt: Prompt
    faults: tuple[str, ...]

    @property
    def correct(self) -> bool:
        """Whether it shows what it should."""
        return not self.faults


@dataclass(frozen=True)
class Scores:
    """What was found of all pictures of one model.

    Attributes:
        verdicts: of every picture.
        judge: the detector and what named the colours.
    """

    verdicts: tuple[Verdict, ...]
    judge: str

    @property
    def tasks(self) -> dict[str, tuple[int, int]]:
        """Right pictures and all pictures of each task that there are pictures of."""
        told = {tag: [one.correct for one in self.verdicts if one.prompt.tag == tag] for tag in TASKS}
        return {tag: (sum(right), len(right)) for tag, right in told.items() if right}

    @property
    def prompts(self) -> tuple[int, int]:
        """Prompts with a right picture, and all prompts; lines that are the same are one."""
        right: dict[str, bool] = {}
        for one in self.verdicts:
            right[one.prompt.line] = right.get(one.prompt.line, False) or one.correct
        return sum(right.values()), len(right)

    @property
    def scores(self) -> dict[str, float]:
        """Shares in [0, 1]: `overall`, which is the mean of the tasks' whatever their sizes, each task's, that of pictures
        that are right, and that of prompts with any picture that is."""
        tasks = {tag: right / total for tag, (right, total) in self.tasks.items()}
        images = sum(one.correct for one in self.verdicts) / len(self.verdicts)
        return {OVERALL: sum(tasks.values()) / len(tasks), **tasks, IMAGES: images, PROMPTS: self.prompts[0] / self.prompts[1]}

    def record(self) -> dict[str, Any]:
        """JSON types, with the verdict of every picture."""
        images = [
            {"image": one.image, "tag": one.prompt.tag, "prompt": one.prompt.text, "correct": one.correct, "faults": one.faults}
            for one in self.verdicts
        ]
        return {"judge": self.judge, "scores": self.scores, "tasks": self.tasks, "images": images}

    def save(self, folder: Path) -> Path:
        """Write FOLDER/verdicts.json and return its path."""
        with made(folder), replacing(path := folder / VERDICTS) as temporary:
            temporary.write_text(json.dumps(self.record(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    def result(self, drawn: Drawn) -> Result:
        """The scores with model and protocol, as `graftax compare` takes them."""
        protocol = dataclasses.replace(drawn.protocol, features=self.judge)
        return Result(drawn.name, drawn.model, drawn.spec, protocol, self.scores, environment())


def score(images: Mapping[str, Prompt], detections: Detections) -> Scores:
    """Judge every picture, by its path in the folder (`folder.read_folder`), by what was seen in it.

    Raises `BadInput` where detections lack a picture or have others, where the detector does not know a class that a prompt
    asks for, and where a color that counts was not looked at.
    """
    if missing := images.keys() - detections.images.keys():
        raise BadInput(f"images: {min(missing)} is missing ({len(missing)} such), expected every picture of the folder")
    if extra := detections.images.keys() - images.keys():
        raise BadInput(f"images: {min(extra)} is not in the folder ({len(extra)} such)")
    if not images:
        raise BadInput("images: none, expected pictures in the folder")
    named = {wanted.name for prompt in images.values() for wanted in (*prompt.include, *prompt.exclude)}
    if unknown := named - detections.classes:
        raise BadInput(f"classes: {min(unknown)!r} is missing, which a prompt asks for ({len(unknown)} such)")
    verdicts = []
    for image, prompt in sorted(images.items()):
        with naming(f"images {image}"):
            verdicts.append(Verdict(image, prompt, tuple(faults(prompt, kept(detections.images[image], prompt.tag)))))
    colors = f", colors by {detections.colors}" if detections.colors else ""
    return Scores(tuple(verdicts), f"GenEval by {detections.detector}{colors}")
