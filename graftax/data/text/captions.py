"""Prompts in files, and pictures with captions: `x.png` beside `x.txt`, or JSON lines that name pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from graftax.data.crop import decode
from graftax.data.folder import SUFFIXES
from graftax.errors import BadInput

METADATA = "metadata.jsonl"
FILE_KEYS = ("file_name", "path", "image")
TEXT_KEYS = ("text", "caption", "captions", "prompt")
JSON_LINES = ".jsonl"


@dataclass(frozen=True)
class CaptionedImages:
    """Pictures with one or several captions each, read one at a time. Every picture has three channels.

    Attributes:
        folder: that `paths` are relative to.
        paths: (n,) of the pictures.
        captions: (n,) of (one or more) strings.
    """

    folder: Path
    paths: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    class_names: tuple[str, ...] = ()
    channels = 3
    fit = "adm centre crop"
    num_classes = 0

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.name

    @property
    def labels(self) -> np.ndarray:
        """(n,) int32, all 0: to subsets, pictures with captions are of one kind."""
        return np.zeros(len(self), np.int32)

    @property
    def digest(self) -> str:
        """SHA-256 over the names of pictures and their captions, in order; pixels are not looked at."""
        return hashlib.sha256(json.dumps([self.paths, self.captions]).encode()).hexdigest()

    def fetch(self, index: int) -> tuple[np.ndarray, int]:
        """(picture (h, w, 3) uint8, 0). Raises `BadInput` naming the file where it is no picture, or damaged."""
        path = self.folder / self.paths[index]
        return decode(path, str(path)), 0

    def take(self, indices: np.ndarray) -> CaptionedImages:
        """The same set with only the pictures at `indices` (m,), in that order."""
        paths, captions = (tuple(values[i] for i in indices) for values in (self.paths, self.captions))
        return replace(self, paths=paths, captions=captions)


def open_captioned(source: str | Path) -> CaptionedImages:
    """The pictures with captions of a folder, or of a file of JSON lines.

    A folder with `metadata.jsonl` is read as Hugging Face's "imagefolder" has it; one without has a `.txt` with the caption
    beside each picture, in sub-folders too. A line is {"file_name": .., "text": ..}; `path` or `image`, and `caption`,
    `captions` or `prompt`, do as well. Paths are relative to the file, and a list of texts gives several captions, as do
    several lines of a `.txt`. Pictures come in the order of lines, or by name. Raises `BadInput` where pictures have no
    captions, saying which and how many, or lines have no pictures.
    """
    path = Path(source)
    if path.suffix == JSON_LINES and path.is_file():
        return _listed(path, complete=False)
    if not path.is_dir():
        raise BadInput(f"captions {str(source)!r}: no such folder or {JSON_LINES} file")
    return _listed(path / METADATA, complete=True) if (path / METADATA).is_file() else _beside(path)


def read_prompts(source: str | Path) -> tuple[str, ...]:
    """The texts in a file, one a line, in a file of JSON lines (as in `open_captioned`; pictures need not be there), or the
    captions of a folder: in order, doubles left in.

    Blank lines are passed over. Raises `BadInput` where there is none, or a line cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        return tuple(caption for own in open_captioned(path).captions for caption in own)
    if path.suffix == JSON_LINES:
        found = tuple(text for number, line in _objects(path) for text in _texts(path, number, line))
    else:
        found = tuple(line for line in _lines(path) if line)
    if not found:
        raise BadInput(f"prompts {path}: none in it, expected one a line")
    return found


def read_labels(path: str | Path, classes: int) -> np.ndarray:
    """(n,) int32: the class numbers in a file, one a line. Raises `BadInput` where a line has none, or one out of range."""
    found = []
    for number, line in enumerate(_lines(Path(path)), 1):
        if line and not (line.isdecimal() and int(line) < classes):
            raise BadInput(f"labels {path} line {number}: got {line[:60]!r}, expected a class 0..{classes - 1}")
        found += [int(line)] if line else []
    if not found:
        raise BadInput(f"labels {path}: none in it, expected a class a line")
    return np.array(found, np.int32)


def _beside(folder: Path) -> CaptionedImages:
    pictures = sorted(str(path.relative_to(folder)) for path in _pictures(folder))
    if not pictures:
        raise BadInput(f"captions {folder}: no pictures ({', '.join(SUFFIXES)}) in it")
    texts = [(folder / name).with_suffix(".txt") for name in pictures]
    captions = [tuple(line for line in _lines(text) if line) if text.is_file() else () for text in texts]
    lacking = [text.name for text, own in zip(texts, captions, strict=True) if not own]
    if lacking:
        where = texts[[not own for own in captions].index(True)].relative_to(folder)
        raise BadInput(f"captions {folder}: {len(lacking)} of {len(pictures)} pictures have none, the first wants {where}")
    return CaptionedImages(folder, tuple(pictures), tuple(captions))


def _listed(file: Path, complete: bool) -> CaptionedImages:
    """The pictures of a file of JSON lines; `complete`: of all in its folder."""
    folder, captions = file.parent, dict[str, tuple[str, ...]]()
    for number, line in _objects(file):
        name = next((line[key] for key in FILE_KEYS if key in line), None)
        if not isinstance(name, str) or not name:
            raise BadInput(f"captions {file} line {number}: keys {sorted(line)[:6]}, expected a path as {FILE_KEYS[0]}")
        if name in captions:
            raise BadInput(f"captions {file} line {number}: {name} once more, expected a line for each picture")
        captions[name] = _texts(file, number, line)
    if not captions:
        raise BadInput(f"captions {file}: empty, expected a line for each picture")
    if absent := [name for name in captions if not (folder / name).is_file()]:
        raise BadInput(f"captions {file}: {len(absent)} of {len(captions)} pictures are not there, the first {absent[0]}")
    if complete:
        named = {(folder / name).resolve() for name in captions}
        there = sorted(_pictures(folder))
        if lacking := [path for path in there if path.resolve() not in named]:
            first = lacking[0].relative_to(folder)
            raise BadInput(f"captions {file}: {len(lacking)} of {len(there)} pictures have no line, the first {first}")
    return CaptionedImages(folder, tuple(captions), tuple(captions.values()))


def _pictures(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SUFFIXES and not hidden:
            yield path


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a file of JSON lines."""
    for number, line in enumerate(_lines(path), 1):
        if not line:
            continue
        try:
            tree = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"captions {path} line {number}: invalid JSON ({error})") from None
        if not isinstance(tree, dict):
            raise BadInput(f"captions {path} line {number}: {line[:60]!r}, expected an object")
        yield number, tree


def _texts(path: Path, number: int, line: dict[str, Any]) -> tuple[str, ...]:
    """The one or several texts of an object."""
    found = next((line[key] for key in TEXT_KEYS if key in line), None)
    texts: Sequence[Any] = found if isinstance(found, list) else [found]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        shown = "nothing" if found is None else repr(found)[:60]
        raise BadInput(f"captions {path} line {number}: caption is {shown}, expected text as {TEXT_KEYS[0]}")
    return tuple(text.strip() for text in texts)


def _lines(path: Path) -> list[str]:
    """Lines of a text file without surrounding white space."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except FileNotFoundError:
        raise BadInput(f"prompts {str(path)!r}: no such file") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"prompts {path}: cannot be read ({error})") from None
