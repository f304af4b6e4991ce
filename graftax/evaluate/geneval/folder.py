"""Pictures in the folder that the official GenEval evaluator reads, and what drew them.

FOLDER/00000/metadata.jsonl      the prompt's line of evaluation_metadata.jsonl
FOLDER/00000/samples/0000.png    its pictures, four unless told otherwise
FOLDER/geneval.json              model and protocol; the evaluator passes over what is not called by a number
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftax.checkpoint.files import made, replacing
from graftax.errors import BadInput, naming
from graftax.evaluate.geneval.prompts import Prompt, parse
from graftax.evaluate.protocol import DIGITS, Protocol, require_equal
from graftax.spec import ModelSpec

INDEX, METADATA, SAMPLES = "geneval.json", "metadata.jsonl", "samples"
EACH = 4
"""Pictures of a prompt, as published scores have them."""

_PICTURE = re.compile(r"\d+\.png")


@dataclass(frozen=True)
class Drawn:
    """What drew the pictures of a folder.

    Attributes:
        name: of the model.
        model: hash of its weights.
        spec: what it is.
        protocol: how each picture was drawn; `count` is that of all pictures, `reference` names the prompts.
        each: pictures of a prompt.
    """

    name: str
    model: str
    spec: ModelSpec
    protocol: Protocol
    each: int = EACH

    def record(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "name": self.name, "model": self.model, "each": self.each, "protocol": json.loads(self.protocol.to_json()),
            "spec": json.loads(self.spec.to_json()),
        }  # fmt: skip


def prompts_name(prompts: Sequence[Prompt], name: str) -> str:
    """What a protocol calls a file of prompts: its `name`, a hash of its lines, how many there are."""
    digest = hashlib.sha256("\n".join(prompt.line for prompt in prompts).encode()).hexdigest()[:DIGITS]
    return f"{name} {digest}, {len(prompts):,} prompts"


def place(folder: Path, number: int) -> Path:
    """The folder of prompt `number`, counted from 0."""
    return folder / f"{number:05d}"


def picture(place: Path, i: int) -> Path:
    """Picture `i` in a prompt's folder."""
    return place / SAMPLES / f"{i:04d}.png"


def begin(folder: Path, drawn: Drawn) -> None:
    """Note what draws the pictures of a folder, unless that is noted already."""
    if not (folder / INDEX).exists():
        with made(folder), replacing(folder / INDEX) as temporary:
            temporary.write_text(json.dumps(drawn.record(), indent=1) + "\n")


def check_drawn(folder: Path, drawn: Drawn) -> None:
    """Raise `BadInput` where a folder holds pictures of another model or protocol, or such as nobody noted anything of."""
    if not (folder / INDEX).exists():
        if folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir()):
            raise BadInput(f"{folder}: pictures without {INDEX}, drawn by others; expected a new folder")
        return
    there = read_drawn(folder)
    if there.model != drawn.model:
        raise BadInput(f"{folder}: pictures of the model {there.model[:DIGITS]}, expected {drawn.model[:DIGITS]}")
    with naming(folder):
        require_equal({"there": there.protocol, "this run": drawn.protocol})
    if there.each != drawn.each:
        raise BadInput(f"{folder}: {there.each} pictures a prompt, expected {drawn.each}")


def read_drawn(folder: Path) -> Drawn:
    """What `begin` noted. Raises `BadInput` where that is damaged or not there."""
    try:
        record = json.loads((folder / INDEX).read_text())
        protocol = Protocol.from_json(json.dumps(record["protocol"]))
        spec = ModelSpec.from_json(json.dumps(record["spec"]))
        return Drawn(record["name"], record["model"], spec, protocol, int(record["each"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / INDEX}: not readable ({error!r})") from None


def is_whole(folder: Path, number: int, prompt: Prompt, each: int) -> bool:
    """Whether all pictures of a prompt are there. Raises `BadInput` where they are another prompt's."""
    own = place(folder, number)
    if not (own / METADATA).is_file():
        return False
    if _read_prompt(own / METADATA) != prompt:
        raise BadInput(f"{own / METADATA}: another prompt than {prompt.text!r}, expected that of the same line")
    return all(picture(own, i).is_file() for i in range(each))


def read_folder(folder: str | Path) -> dict[str, Prompt]:
    """The prompt of every picture, by the picture's path in the folder ("00000/samples/0000.png").

    Raises `BadInput` where there are none, a prompt is damaged, or prompts have different numbers of pictures.
    """
    folder, images = Path(folder), {}
    numbered = sorted(path for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []
    if not numbered:
        raise BadInput(f"{folder}: no folders 00000, 00001, .. in it, expected GenEval's pictures")
    counts = {}
    for path in numbered:
        prompt = _read_prompt(path / METADATA)
        names = sorted(file.name for file in (path / SAMPLES).glob("*.png") if _PICTURE.fullmatch(file.name))
        counts[path.name] = len(names)
        images |= {f"{path.name}/{SAMPLES}/{name}": prompt for name in names}
    few = min(counts, key=lambda name: counts[name])
    if counts[few] != (most := max(counts.values())) or not most:
        raise BadInput(f"{folder / few}: {counts[few]} pictures in {SAMPLES}/, others have {most}, expected as many")
    return images


def _read_prompt(path: Path) -> Prompt:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error}), expected the prompt's line") from None
    with naming(path):
        return parse(text)
