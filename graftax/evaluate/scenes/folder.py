"""Pictures of scenes in a folder, as `graftax.evaluate.geneval.draw_folder` leaves them, judged."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from graftax.data.crop import decode
from graftax.evaluate.geneval import read_folder
from graftax.evaluate.scenes.scoring import SceneScores, score


def score_folder(folder: str | Path) -> SceneScores:
    """Judge all pictures of a folder, each by the caption beside it.

    Raises `BadInput` where there are none, and where captions or pictures are not of scenes.
    """
    images = read_folder(folder)
    pixels = np.stack([decode(Path(folder) / name, name) for name in images])
    found = score(pixels, [prompt.text for prompt in images.values()])
    named = zip(found.verdicts, images, strict=True)
    return dataclasses.replace(found, verdicts=tuple(dataclasses.replace(one, image=name) for one, name in named))
