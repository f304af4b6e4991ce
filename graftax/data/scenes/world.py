"""What there is in the world of scenes: kinds of things, colours, relations, and a scene as data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from graftax.data.scenes.caption import Caption, parse
from graftax.errors import BadInput

SIDE = 64
"""Of a picture in pixels."""

SIZES = tuple(range(20, 33, 2))
"""Sides in pixels that things come in."""

GROUND = 236, 252
"""Least and most of each channel of the background, of 255."""


@dataclass(frozen=True)
class Thing:
    """One thing in a picture.

    Attributes:
        kind: one of `vocabulary.KINDS`.
        colour: of a shape, one of `vocabulary.COLOURS`; None for an emoji, which has its own colours.
        x: of the centre, in pixels from the left edge of the picture.
        y: of the centre, from the upper edge.
        size: side in pixels of the square that it fills.
    """

    kind: str
    colour: str | None
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """A picture as data: what its caption says, where everything is, and on what ground.

    Attributes:
        caption: what it shows; it names every thing.
        things: in the caption's order.
        ground: colour of the background, RGB from 0 to 255.
    """

    caption: Caption
    things: tuple[Thing, ...]
    ground: tuple[int, int, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON types, that `from_dict` reads back to an equal scene."""
        return {**dataclasses.asdict(self), "caption": str(self.caption)}

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Scene:
        """Inverse of `to_dict`. Raises `BadInput` on anything else."""
        try:
            things = tuple(Thing(**thing) for thing in tree["things"])
            red, green, blue = tree["ground"]
            return cls(parse(tree["caption"]), things, (red, green, blue))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"scene: {error} in {str(tree)[:80]!r}, expected the fields of a Scene") from None
