"""Captions that say something else of a picture in nearly the same words: hard negatives."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import replace

import numpy as np

from graftax.data.scenes.caption import Caption, Group
from graftax.data.scenes.split import is_held_out
from graftax.data.scenes.vocabulary import COLOURS, EMOJI, NUMBERS, RELATIONS

OPPOSITE = {name: other for name, (x, y) in RELATIONS.items() for other, at in RELATIONS.items() if at == (-x, -y)}
"""Of a relation the one the other way round."""


def contrary(caption: Caption, rng: np.random.Generator) -> Caption:
    """A caption that is wrong where `caption` is right, the nearest to it, or of a training's caption the nearest that
    training may see.

    In a relation the two groups change places, or the relation turns round; of two colours each goes to the other thing, and
    of two numbers likewise; else a number, a colour or a kind is another one.
    """
    while True:
        for other in _near(caption, rng):
            if is_held_out(caption) or not is_held_out(other):
                return other


def _near(caption: Caption, rng: np.random.Generator) -> Iterator[Caption]:
    """Wrong captions, the nearest first; the last is another one each time."""
    groups = caption.groups
    first, last = groups[0], groups[-1]
    if caption.relation is not None:
        turned = [Caption(groups[::-1], caption.relation), Caption(groups, OPPOSITE[caption.relation])]
        yield turned[int(rng.integers(2))]
    elif first.count != last.count:
        yield Caption((replace(first, count=last.count), replace(last, count=first.count)))
    elif len(groups) == 2 and first.colour and last.colour:
        yield Caption((replace(first, colour=last.colour), replace(last, colour=first.colour)))
    elif len(groups) == 1 and first.count > 1:
        others = [number for number in NUMBERS.values() if number != first.count]
        yield from (Caption((replace(first, count=int(number)),)) for number in rng.permutation(others))
    changed = int(rng.integers(len(groups)))
    new = tuple(_other(group, groups, rng) if i == changed else group for i, group in enumerate(groups))
    yield Caption(new, caption.relation)


def _other(group: Group, beside: tuple[Group, ...], rng: np.random.Generator) -> Group:
    """The group with another colour, where it has one, or of another kind."""
    if group.colour is not None:
        return replace(group, colour=_one(tuple(COLOURS), {each.colour for each in beside}, rng))
    return replace(group, kind=_one(EMOJI, {each.kind for each in beside}, rng))


def _one(values: tuple[str, ...], taken: Container[object], rng: np.random.Generator) -> str:
    left = [value for value in values if value not in taken]
    return left[int(rng.integers(len(left)))]
