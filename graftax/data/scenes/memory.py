"""Scenes drawn into memory, by all cores where there are many."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from graftax.data.scenes.render import render
from graftax.data.scenes.sample import contrary_of, scene
from graftax.data.scenes.split import check_split
from graftax.data.scenes.tokens import ids
from graftax.data.source import ImageSet
from graftax.errors import BadInput
from graftax.progress import Progress

SCENES = "scenes"
"""The source's name."""

TRAINED, HELD_OUT = 100_000, 1_000
"""Scenes of either split, unless asked for otherwise."""

_CHUNK = 2_000  # scenes that one process draws at a time, 1.5 s of one core; so few that fewer are drawn here

Span = tuple[int, int, str, int]
"""First number, the one after the last, split, seed."""

Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Images, words, contrary words."""


def scenes_in_memory(count: int, split: str = "train", seed: int = 0) -> ImageSet:
    """The first `count` scenes of a split: images (n, 64, 64, 3) uint8, their captions as words (n, 16) int32, and captions
    that are wrong in nearly the same words.

    A scene is the same whatever `count` is, and however many processes draw. Raises `BadInput` as `scene` does.
    """
    check_split(split)
    if count < 1 or seed < 0:
        raise BadInput(f"scenes: count {count}, seed {seed}; expected at least 1 and 0")
    spans: list[Span] = [(start, min(start + _CHUNK, count), split, seed) for start in range(0, count, _CHUNK)]
    processes = min(len(spans), os.cpu_count() or 1)
    parts: list[Drawn] = []
    with Progress(count, f"draw scenes, {split}", unit="image", show=len(spans) > 1) as progress:
        for part in map(_drawn, spans) if processes == 1 else _in_processes(spans, processes):
            parts.append(part)
            progress.advance(len(part[0]))
    images, text, against = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return ImageSet(images, np.zeros(count, np.int32), SCENES, 0, (), text, against)


def _in_processes(spans: list[Span], processes: int) -> Iterator[Drawn]:
    # Not forked: the parent's threads, XLA's among them, would be left behind in the middle of what they do.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_drawn, spans)


def _drawn(span: Span) -> Drawn:
    """Images, words and contrary words of the scenes of a span."""
    start, stop, split, seed = span
    chosen = {i: scene(i, split, seed) for i in range(start, stop)}
    against = [str(contrary_of(each.caption, i, split, seed)) for i, each in chosen.items()]
    return np.stack([render(each) for each in chosen.values()]), ids([str(e.caption) for e in chosen.values()]), ids(against)
