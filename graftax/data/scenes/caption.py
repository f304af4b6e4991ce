"""Captions as data: one or two groups of things and where the first is from the second; to words and back."""

from __future__ import annotations

from dataclasses import dataclass

from graftax.data.scenes.vocabulary import AND, ARTICLES, COLOURS, EMOJI, KINDS, NUMBERS, RELATIONS, SHAPES, plural
from graftax.errors import BadInput, did_you_mean

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The six of GenEval (Ghosh et al., 2023), under its names."""

MIXED = "mixed"
"""The category of captions that are in none of them: "two red hearts left of a cat"."""

MOST = 4
"""Things in a picture."""

_COUNTS = {number: word for word, number in NUMBERS.items()}
_SINGULAR = {plural(kind): kind for kind in KINDS}
_WORDS = (*ARTICLES, AND, *RELATIONS, *NUMBERS, *COLOURS, *KINDS, *_SINGULAR)


@dataclass(frozen=True)
class Group:
    """So many things of one kind and colour. Raises `BadInput` on what the world does not have.

    Attributes:
        count: 1 to 4.
        kind: of all of them.
        colour: of shapes; None for emoji.
    """

    count: int
    kind: str
    colour: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST:
            raise BadInput(f"count: got {self.count}, expected 1 to {MOST}")
        if self.kind not in KINDS:
            raise BadInput(f"kind: got {self.kind!r}, expected one of {KINDS}{did_you_mean(self.kind, KINDS)}")
        if self.kind in EMOJI and self.colour is not None:
            raise BadInput(f"colour: got {self.colour!r} for a {self.kind}, expected none: an emoji has its own colours")
        if self.kind in SHAPES and self.colour not in COLOURS:
            near = did_you_mean(self.colour, COLOURS)
            raise BadInput(f"colour: got {self.colour!r} for a {self.kind}, expected one of {tuple(COLOURS)}{near}")

    def __str__(self) -> str:
        words = [self.colour] if self.colour else []
        words.append(self.kind if self.count == 1 else plural(self.kind))
        article = ARTICLES[words[0][0] in "aeiou"]
        return " ".join([article if self.count == 1 else _COUNTS[self.count], *words])


@dataclass(frozen=True)
class Caption:
    """What a picture shows. Raises `BadInput` on groups that do not go together.

    Attributes:
        groups: one, or two of different kinds, and where both have colours, of different colours; at most four things.
        relation: where the first group is from the second, one of `vocabulary.RELATIONS`; None where that is not said.
    """

    groups: tuple[Group, ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        if len(self.groups) not in (1, 2):
            raise BadInput(f"groups: got {len(self.groups)}, expected 1 or 2")
        if self.count > MOST:
            raise BadInput(f"caption {str(self)!r}: {self.count} things, expected at most {MOST}")
        if self.relation is not None and (self.relation not in RELATIONS or len(self.groups) == 1):
            raise BadInput(f"relation: got {self.relation!r}, expected one of {tuple(RELATIONS)} between two groups")
        if len({group.kind for group in self.groups}) < len(self.groups):
            raise BadInput(f"caption {str(self)!r}: one kind twice, expected two kinds")
        if len(colours := [group.colour for group in self.groups if group.colour]) > len(set(colours)):
            raise BadInput(f"caption {str(self)!r}: one colour twice, expected two colours")

    @property
    def count(self) -> int:
        """Things in the picture."""
        return sum(group.count for group in self.groups)

    @property
    def category(self) -> str:
        """One of `CATEGORIES`, or `MIXED`."""
        singles, colours = self.count == len(self.groups), sum(group.colour is not None for group in self.groups)
        if len(self.groups) == 1:
            return ("colors" if colours else "single_object") if singles else "counting"
        if not singles:
            return MIXED
        if self.relation is not None:
            return "position"
        return "color_attr" if colours == 2 else "two_object"

    def __str__(self) -> str:
        return f" {self.relation or AND} ".join(map(str, self.groups))


def parse(text: str) -> Caption:
    """The caption that reads as `text` does, in any case and spacing: `parse(str(caption)) == caption`.

    Raises `BadInput` naming the first word that is not known or not expected there.
    """
    words = text.lower().split()
    first, rest = _group(words, text)
    if not rest:
        return Caption((first,))
    name, rest = _link(rest, text)
    second, rest = _group(rest, text)
    if rest:
        raise _unexpected(rest, text, "the end")
    return Caption((first, second), None if name == AND else name)


def _group(words: list[str], text: str) -> tuple[Group, list[str]]:
    """The group that `words` begin with, and the words after it."""
    if not words or (words[0] not in NUMBERS and words[0] not in ARTICLES):
        raise _unexpected(words, text, f"one of {(*ARTICLES, *NUMBERS)}")
    count, words = NUMBERS.get(words[0], 1), words[1:]
    colour, words = (words[0], words[1:]) if words and words[0] in COLOURS else (None, words)
    kinds = {kind: kind for kind in KINDS} if count == 1 else _SINGULAR
    if not words or words[0] not in kinds:
        raise _unexpected(words, text, "a kind of thing" if count == 1 else "the plural of a kind of thing")
    return Group(count, kinds[words[0]], colour), words[1:]


def _link(words: list[str], text: str) -> tuple[str, list[str]]:
    """What `words` begin with, "and" or a relation, and the words after it."""
    for name in (AND, *RELATIONS):
        if words[: len(name.split())] == name.split():
            return name, words[len(name.split()) :]
    raise _unexpected(words, text, f"one of {(AND, *RELATIONS)}")


def _unexpected(words: list[str], text: str, expected: str) -> BadInput:
    found = repr(words[0]) if words else "the end"
    near = did_you_mean(words[0], _WORDS) if words and words[0] not in _WORDS else ""
    return BadInput(f"caption {text!r}: {found}, expected {expected}{near}")
