"""Closed vocabularies by name: what reads the prompts of models that have a text encoder among their own parameters.

Such a model knows numbers of words alone. Whose words they are its spec says (the frame's option `vocabulary`), so that
every edit, training and save keeps it.
"""

from __future__ import annotations

from pathlib import Path

from graftax.checkpoint.store import INDEX, spec_of_folder
from graftax.data.scenes.memory import SCENES
from graftax.data.scenes.tokens import SceneWords
from graftax.errors import BadInput, did_you_mean
from graftax.spec import ModelSpec

VOCABULARIES = {SCENES: SceneWords}


def reads_words(spec: ModelSpec) -> bool:
    """Whether a model's texts are numbers of words."""
    return bool(spec.option("words", 0))


def words_of(spec: ModelSpec) -> SceneWords:
    """The words that a model reads. Raises `BadInput` where it does not say which, or they are others than ours."""
    name = spec.option("vocabulary", "")
    if name not in VOCABULARIES:
        near = did_you_mean(name, VOCABULARIES) if name else ", which the model does not name"
        raise BadInput(f"vocabulary: got {name!r}, expected one of {tuple(VOCABULARIES)}{near}")
    words = VOCABULARIES[name]()
    if len(words) != spec.option("words"):
        raise BadInput(f"vocabulary {name!r}: {len(words)} words, the model reads {spec.option('words')}")
    return words


def find_words(path: str | Path) -> SceneWords | None:
    """The vocabulary that `path` names, by itself or as the folder of a model that reads it; None where it is no local
    folder of a model of ours.

    Raises `BadInput` where that model reads no words, or does not say which.
    """
    if str(path) in VOCABULARIES:
        return VOCABULARIES[str(path)]()
    if not (Path(path) / INDEX).is_file():
        return None
    spec = spec_of_folder(path)
    if not reads_words(spec):
        what = f"{spec.classes} classes" if spec.classes else "texts that are embedded already"
        raise BadInput(f"{path}: a model of {what}, expected a text encoder's folder, or that of a model of words")
    return words_of(spec)
