"""GenEval's prompts (Ghosh et al., arXiv 2310.11513): what each picture must show, read from the file that users bring.

The official `evaluation_metadata.jsonl` (github.com/djghosh13/geneval) has 553 lines, one JSON object each:

    {"tag": "position", "prompt": "a photo of a dog right of a teddy bear",
     "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}]}

A picture is right where it shows all that `include` names (at least `count` of a class, of one colour, at a place relative
to what an earlier entry found) and, of what `exclude` names, fewer than `count`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftax.checkpoint.members import shown
from graftax.errors import BadInput, did_you_mean, naming

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""Tags of the six tasks."""

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")

_FIELDS = ("tag", "prompt", "include", "exclude")
_WANTED = ("class", "count", "color", "position")


@dataclass(frozen=True)
class Wanted:
    """One entry of `include` or `exclude`.

    Attributes:
        name: class of the objects.
        count: how many: at least so many of what is included, fewer of what is excluded.
        color: of each of them; None for any.
        position: (relation, index of the earlier entry that it is to), None for anywhere.
    """

    name: str
    count: int
    color: str | None = None
    position: tuple[str, int] | None = None

    def record(self) -> dict[str, Any]:
        """The entry as it stands in the file."""
        record = {"class": self.name, "count": self.count, "color": self.color, "position": self.position}
        return {name: value for name, value in record.items() if value is not None}


@dataclass(frozen=True)
class Prompt:
    """One line of the file.

    Attributes:
        tag: its task.
        text: what the model is given.
        include: what the picture must show.
        exclude: what it must not.
        line: the JSON object as one line of text, which the official evaluator tells prompts apart by.
    """

    tag: str
    text: str
    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...]
    line: str

    @classmethod
    def of(cls, tag: str, text: str, include: tuple[Wanted, ...], exclude: tuple[Wanted, ...] = ()) -> Prompt:
        """A prompt of one's own, with the line that `parse` reads it back from."""
        lists = {"include": [one.record() for one in include], "exclude": [one.record() for one in exclude]}
        return cls(tag, text, include, exclude, json.dumps({"tag": tag, "prompt": text, **lists}))


def read_prompts(path: str | Path) -> list[Prompt]:
    """All prompts of a file of JSON lines, in order. Raises `BadInput` naming line and field of what is wrong."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error}), expected GenEval's evaluation_metadata.jsonl") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            with naming(f"{path}:{number}"):
                prompts.append(parse(line))
    if not prompts:
        raise BadInput(f"{path}: no lines, expected one JSON object for each prompt")
    return prompts


def parse(line: str) -> Prompt:
    """The prompt that one JSON object describes. Raises `BadInput` naming the field."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise BadInput(f"not JSON ({error})") from None
    _check_fields("the line", record, _FIELDS, _FIELDS[:3])
    if record["tag"] not in TASKS:
        raise BadInput(f"tag: got {_text(record['tag'])}, expected one of {TASKS}{did_you_mean(record['tag'], TASKS)}")
    if not isinstance(record["prompt"], str) or not record["prompt"].strip():
        raise BadInput(f"prompt: got {_text(record['prompt'])}, expected a text")
    include = _entries("include", record["include"])
    if not include:
        raise BadInput("include: empty, expected at least one object that the picture must show")
    exclude = _entries("exclude", record.get("exclude", []))
    if any(wanted.color or wanted.position for wanted in exclude):
        raise BadInput("exclude: got a color or a position, expected classes and counts alone")
    return Prompt(record["tag"], record["prompt"], include, exclude, json.dumps(record))


def _entries(field: str, entries: Any) -> tuple[Wanted, ...]:
    if not isinstance(entries, list):
        raise BadInput(f"{field}: got {_text(entries)}, expected a list")
    return tuple(_wanted(f"{field}[{i}]", i, entry) for i, entry in enumerate(entries))


def _wanted(field: str, index: int, entry: Any) -> Wanted:
    """Entry number `index` of its list; `field` names it in errors."""
    _check_fields(field, entry, _WANTED, _WANTED[:2])
    name, count, color = entry["class"], entry["count"], entry.get("color")
    if not isinstance(name, str) or not name:
        raise BadInput(f"{field}.class: got {_text(name)}, expected the name of a class")
    if type(count) is not int or count < 1:
        raise BadInput(f"{field}.count: got {_text(count)}, expected a whole number from 1")
    if color is not None and color not in COLORS:
        raise BadInput(f"{field}.color: got {_text(color)}, expected one of {COLORS}{did_you_mean(color, COLORS)}")
    return Wanted(name, count, color, _position(f"{field}.position", index, entry.get("position")))


def _position(field: str, index: int, position: Any) -> tuple[str, int] | None:
    match position:
        case None:
            return None
        case [str(relation), int(target)] if relation in RELATIONS and 0 <= target < index and target is not False:
            return relation, target
    raise BadInput(f"{field}: got {_text(position)}, expected [RELATION, INDEX], one of {RELATIONS} to an entry before it")


def _check_fields(what: str, record: Any, known: tuple[str, ...], needed: tuple[str, ...]) -> None:
    if not isinstance(record, Mapping):
        raise BadInput(f"{what}: got {_text(record)}, expected a JSON object")
    if missing := [name for name in needed if name not in record]:
        raise BadInput(f"{what}: {missing[0]} is missing, expected {', '.join(needed)}")
    if extra := [name for name in record if name not in known]:
        near = did_you_mean(extra[0], known)
        raise BadInput(f"{what}: unknown field {shown(extra[0])}, expected {', '.join(known)}{near}")


def _text(value: Any) -> str:
    """A value of a stranger's JSON, short."""
    return shown(json.dumps(value))
