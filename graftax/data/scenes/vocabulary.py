"""The words of the world of scenes. The vocabulary is closed: captions are made of these words alone."""

from __future__ import annotations

EMOJI = (
    "cat", "dog", "frog", "panda", "pig", "crab", "bee", "banana", "mushroom", "pizza",
    "tree", "flower", "car", "rocket", "ball", "umbrella", "gift", "robot", "hat", "bell",
)  # fmt: skip
"""Kinds with their own colours, in the order of the sprite sheet."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "ring", "cross")
"""Kinds that take a colour."""

KINDS = EMOJI + SHAPES

COLOURS = {
    "red": (222, 45, 45),
    "orange": (247, 142, 30),
    "yellow": (250, 212, 50),
    "green": (52, 168, 83),
    "blue": (50, 105, 225),
    "purple": (142, 68, 185),
    "pink": (248, 135, 185),
    "black": (40, 40, 46),
}
"""Colours of shapes, RGB from 0 to 255."""

NUMBERS = {"two": 2, "three": 3, "four": 4}

RELATIONS = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
"""Where the first thing is from the second: (x, y), y downwards."""

ARTICLES = ("a", "an")
AND = "and"

_PLURALS = {"cross": "crosses"}


def plural(kind: str) -> str:
    """The word for more than one."""
    return _PLURALS.get(kind, f"{kind}s")


PAD, UNKNOWN, END = "[PAD]", "[UNK]", "[END]"

WORDS = (
    PAD, UNKNOWN, END, *ARTICLES, AND, *dict.fromkeys(word for name in RELATIONS for word in name.split()), *NUMBERS,
    *COLOURS, *KINDS, *map(plural, KINDS),
)  # fmt: skip
"""By their id: [PAD] is 0."""

LENGTH = 16
"""Ids of a caption, the end and padding among them."""
