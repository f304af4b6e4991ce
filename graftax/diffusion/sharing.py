"""In which steps of a sampler the encoder of a model of two stages runs (DDT, arXiv 2504.05741, Section 3.4)."""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike

from graftax.errors import BadInput


def every(rate: int, steps: int) -> tuple[int, ...]:
    """Steps 0, rate, 2 rate .. of so many. Raises `BadInput` where `rate` is below 1."""
    if rate < 1:
        raise BadInput(f"refresh: got every {rate} steps, expected 1 or more")
    return tuple(range(0, steps, rate))


def chosen_steps(similarity: ArrayLike, count: int) -> tuple[int, ...]:
    """The `count` steps at which an encoder had best run: those for which the sum over all steps of the similarity to the
    last one at which it ran is greatest, step 0 among them. By dynamic programming.

    similarity: (s, s), as of `similarities`. Raises `BadInput` where `count` is not 1..s.
    """
    lost = 1 - np.asarray(similarity, np.float64)
    steps = len(lost)
    if not 1 <= count <= steps:
        raise BadInput(f"refresh: got {count} of {steps} steps, expected 1..{steps}")
    # span[i, j]: what is lost in steps i .. j - 1 under the conditions of step i.
    span = np.concatenate([np.zeros((steps, 1)), np.cumsum(np.triu(lost), axis=1)], axis=1)
    best, before = np.append(np.inf, span[0, 1:]), []  # best[j]: of steps 0 .. j - 1, with so many runs
    for _ in range(count - 1):
        # total[i, j]: the last of these runs is at i < j, the steps before i are as good as they can be.
        total = np.where(np.tri(steps, steps + 1, dtype=bool), np.inf, best[:-1, None] + span)
        best = total.min(0)
        before.append(total.argmin(0))
    end, found = steps, []
    for row in reversed(before):
        end = int(row[end])
        found.append(end)
    return (0, *reversed(found))


def similarities(states: ArrayLike) -> np.ndarray:
    """Mean cosine over images and tokens of what an encoder made in every pair of steps: states (s, b, n, d) -> (s, s)."""
    states = np.asarray(states, np.float64)
    unit = states / np.linalg.norm(states, axis=-1, keepdims=True)
    flat = unit.reshape(len(unit), -1)
    return flat @ flat.T / np.prod(states.shape[1:-1])
