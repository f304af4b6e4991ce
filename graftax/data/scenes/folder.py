"""Scenes as files: a folder of pictures with captions, which other programs read as well."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from graftax.checkpoint.files import filling
from graftax.data.scenes.reader import Scenes
from graftax.data.scenes.render import render
from graftax.progress import Progress

METADATA = "metadata.jsonl"


def write_folder(scenes: Scenes, folder: Path) -> None:
    """Write FOLDER/000000.png .. and FOLDER/metadata.jsonl, whole or not at all.

    A line is {"file_name": .., "text": the caption, "scene": `Scene.to_dict()`}: what Hugging Face's "imagefolder" and
    `graftax encode --captions` read, with the truth besides. Raises `BadInput` where the folder cannot be written.
    """
    with (
        filling(folder) as temporary,
        (temporary / METADATA).open("w", encoding="utf-8") as lines,
        Progress(len(scenes), "scenes", unit="scene") as progress,
    ):
        for i, scene in enumerate(scenes):
            Image.fromarray(render(scene)).save(temporary / _name(i), format="PNG")
            line = {"file_name": _name(i), "text": str(scene.caption), "scene": scene.to_dict()}
            lines.write(json.dumps(line) + "\n")
            progress.advance()


def remove_beyond(folder: Path, count: int) -> None:
    """Remove what an earlier and larger set than one of `count` scenes has left of its pictures in a folder."""
    names = {_name(i) for i in range(count)}
    for path in folder.glob("[0-9]" * 6 + ".png"):
        if path.name not in names:
            path.unlink()


def _name(index: int) -> str:
    return f"{index:06d}.png"
