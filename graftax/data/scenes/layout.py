"""Where things go: all inside of the picture, none on another, and clearly where a caption says."""

from __future__ import annotations

import numpy as np

from graftax.data.scenes.vocabulary import RELATIONS
from graftax.data.scenes.world import SIDE, SIZES

SIZES_OF = {1: SIZES[3:], 2: SIZES[2:5], 3: SIZES[1:3], 4: SIZES[:2]}
"""Sides that things come in where there are so many of them."""

_TRIES = {1: 1, 2: 32, 3: 64, 4: 256}  # layouts drawn at once: one in 4 of two things fits, one in 100 of four
_OVERLAP = 1  # pixels by which two squares may overlap: sprites hardly fill their corners
_APART, _SLANT = 0.9, 0.8  # least offset along a relation in sizes, most offset across it in offsets along it


def place(rng: np.random.Generator, counts: tuple[int, ...], relation: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Centres (k, 2) of x and y and sides (k,) in whole pixels of the things of one or two groups, in their order.

    Of some layouts drawn at once the first that fits is taken; where none does, others are drawn.
    """
    total = sum(counts)
    tries = _TRIES[total]
    while True:
        sizes = rng.choice(SIZES_OF[total], (tries, total))  # (t, k), even: centres are whole pixels
        room = rng.random((tries, total, 2))
        centres = sizes[..., None] // 2 + np.floor(room * (SIDE + 1 - sizes[..., None])).astype(int)  # (t, k, 2)
        if relation is not None:
            centres, sizes = _ordered(centres, sizes, relation)
        fits = _apart(centres, sizes)
        if relation is not None:
            fits &= _related(centres, sizes, counts[0], relation)
        if fits.any():
            chosen = int(np.argmax(fits))
            return centres[chosen], sizes[chosen]


def _ordered(centres: np.ndarray, sizes: np.ndarray, relation: str) -> tuple[np.ndarray, np.ndarray]:
    """The same layouts with their things in the order in which they stand along the relation, the first group's first."""
    order = np.argsort(-(centres @ np.array(RELATIONS[relation])), axis=1, kind="stable")  # (t, k)
    return np.take_along_axis(centres, order[..., None], axis=1), np.take_along_axis(sizes, order, axis=1)


def _apart(centres: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(t,) whether no two squares overlap."""
    first, second = np.triu_indices(sizes.shape[1], 1)
    offsets = np.abs(centres[:, first] - centres[:, second]).max(-1)  # (t, pairs)
    return np.all(offsets >= (sizes[:, first] + sizes[:, second]) / 2 - _OVERLAP, axis=-1)


def _related(centres: np.ndarray, sizes: np.ndarray, first: int, relation: str) -> np.ndarray:
    """(t,) whether each of the `first` things is in the relation to each of the others, with room to spare."""
    offsets = centres[:, :first, None] - centres[:, None, first:]  # (t, first, others, 2)
    mean = (sizes[:, :first, None] + sizes[:, None, first:]) / 2
    axis = np.array(RELATIONS[relation])
    along, across = offsets @ axis, np.abs(offsets @ (1 - np.abs(axis)))
    return np.all((along >= _APART * mean) & (across <= _SLANT * along), axis=(1, 2))
