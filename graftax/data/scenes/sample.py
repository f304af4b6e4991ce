"""Unlimited scenes and prompts: number `index` of a stream depends on seed, split and index alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graftax.data.scenes.caption import CATEGORIES, MIXED, Caption, Group
from graftax.data.scenes.contrary import contrary
from graftax.data.scenes.layout import place
from graftax.data.scenes.split import SPLITS, check_split, is_held_out
from graftax.data.scenes.vocabulary import COLOURS, EMOJI, KINDS, RELATIONS, SHAPES
from graftax.data.scenes.world import GROUND, Scene, Thing
from graftax.errors import BadInput, did_you_mean

WEIGHTS = {
    "single_object": 0.10, "two_object": 0.15, "counting": 0.20, "colors": 0.12, "position": 0.20, "color_attr": 0.11,
    MIXED: 0.12,
}  # fmt: skip
"""How often the categories come in training."""

_PROMPTS, _CONTRARY = len(SPLITS), 2 * len(SPLITS)  # streams beside those of the splits


def scene(index: int, split: str = "train", seed: int = 0) -> Scene:
    """Scene number `index` (from 0) of a split ("train" or "heldout") of the stream `seed`.

    Captions of "train" have no combination that is held out, those of "heldout" have one or more, and so are never of one
    emoji alone. Raises `BadInput` on another split and on negative numbers.
    """
    check_split(split)
    rng = _generator(seed, SPLITS.index(split), index)
    caption = _caption(rng, _category(rng, split), split)
    centres, sizes = place(rng, tuple(group.count for group in caption.groups), caption.relation)
    groups = [group for group in caption.groups for _ in range(group.count)]
    things = (
        Thing(group.kind, group.colour, float(x), float(y), float(size))
        for group, (x, y), size in zip(groups, centres, sizes, strict=True)
    )
    red, green, blue = (int(value) for value in rng.integers(GROUND[0], GROUND[1] + 1, 3))
    return Scene(caption, tuple(things), (red, green, blue))


def contrary_of(caption: Caption, index: int, split: str = "train", seed: int = 0) -> Caption:
    """The caption that stands against that of scene number `index` (`graftax.data.scenes.contrary`)."""
    return contrary(caption, _generator(seed, _CONTRARY + SPLITS.index(split), index))


def prompts(category: str, count: int, split: str = "heldout", seed: int = 0) -> list[Caption]:
    """`count` captions of one of GenEval's `CATEGORIES`, drawn as `scene` draws them, so that some may come twice.

    One emoji alone combines nothing: "single_object" takes the emoji in turn, the same in both splits. Raises `BadInput` on
    an unknown category or split.
    """
    check_split(split)
    if category not in CATEGORIES:
        raise BadInput(f"category: got {category!r}, expected one of {CATEGORIES}{did_you_mean(category, CATEGORIES)}")
    if category == "single_object":
        return [Caption((Group(1, EMOJI[i % len(EMOJI)]),)) for i in range(count)]
    first = CATEGORIES.index(category) << 32
    stream = _PROMPTS + SPLITS.index(split)
    return [_caption(_generator(seed, stream, first + i), category, split) for i in range(count)]


def _generator(seed: int, stream: int, index: int) -> np.random.Generator:
    if seed < 0 or index < 0:
        raise BadInput(f"scene {index} of seed {seed}: expected numbers from 0")
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, stream, index]))


def _category(rng: np.random.Generator, split: str) -> str:
    names = [name for name in WEIGHTS if split == "train" or name != "single_object"]
    weights = np.array([WEIGHTS[name] for name in names])
    return names[int(np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(), side="right"))]


def _caption(rng: np.random.Generator, category: str, split: str) -> Caption:
    """A caption of the category on the right side of the split."""
    while True:
        caption = _DRAW[category](rng)
        if is_held_out(caption) == (split == "heldout"):
            return caption


def _one(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def _groups(rng: np.random.Generator, kinds: tuple[str, ...], counts: tuple[int, ...]) -> tuple[Group, ...]:
    """A group of each count, of different kinds and colours."""
    chosen = rng.permutation(len(kinds))[: len(counts)]
    colours = rng.permutation(len(COLOURS))
    names = tuple(COLOURS)
    return tuple(
        Group(count, kinds[kind], names[colour] if kinds[kind] in SHAPES else None)
        for count, kind, colour in zip(counts, chosen, colours, strict=False)
    )


def _two_object(rng: np.random.Generator) -> Caption:
    """Two things, not both shapes, in either order."""
    first = _one(rng, EMOJI)
    second = _one(rng, tuple(kind for kind in KINDS if kind != first))
    colour = _one(rng, tuple(COLOURS)) if second in SHAPES else None
    groups = (Group(1, first), Group(1, second, colour))
    return Caption(groups if rng.random() < 0.5 else groups[::-1])


def _mixed(rng: np.random.Generator) -> Caption:
    """Three or four things of two kinds, half of the time in a relation."""
    total = int(rng.integers(3, 5))
    first = int(rng.integers(1, total))
    relation = _one(rng, tuple(RELATIONS)) if rng.random() < 0.5 else None
    return Caption(_groups(rng, KINDS, (first, total - first)), relation)


_DRAW: dict[str, Callable[[np.random.Generator], Caption]] = {
    "single_object": lambda rng: Caption(_groups(rng, EMOJI, (1,))),
    "two_object": _two_object,
    "counting": lambda rng: Caption(_groups(rng, KINDS, (int(rng.integers(2, 5)),))),
    "colors": lambda rng: Caption(_groups(rng, SHAPES, (1,))),
    "position": lambda rng: Caption(_groups(rng, KINDS, (1, 1)), _one(rng, tuple(RELATIONS))),
    "color_attr": lambda rng: Caption(_groups(rng, SHAPES, (1, 1))),
    MIXED: _mixed,
}
