"""A tiny teacher, students of it, and batches. Run as a script it distils until done or kills itself:
tiny_graft.py WORKDIR [KILL_AT_BATCH]."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from graftax.distill import DistillConfig, distill_job
from graftax.models import Model
from graftax.surgery import compose, graft, replace
from graftax.testing import random_params, tiny_spec
from graftax.train.loop import fit
from graftax.train.loop_config import LoopConfig

FAST = DistillConfig(steps=200, learning_rate=3e-3, schedule="constant")


@functools.cache
def teacher(**changes: Any) -> Model:
    spec = tiny_spec(**changes)
    return Model(spec, random_params(spec, jax.random.key(1)))


def student(of: Model, *edits: Any) -> Model:
    return graft(of, compose(*edits), jax.random.key(2))


@functools.cache
def mixed(of: Model) -> Model:
    """Scions in both slots: two groups of one site, one of two."""
    return student(
        of, replace("blocks[1,3].mixer", "hyena_x"), replace("blocks[2].mixer", "swa"), replace("blocks[0].mlp", "mlp")
    )


def batch(seed: int, size: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.standard_normal((size, 8, 8, 4), np.float32),
        "label": rng.integers(0, 10, size).astype(np.int32),
    }


class Stream:
    """Batch i is a function of i. `before(i)` runs first; batch `bad` holds a NaN."""

    def __init__(self, before: Callable[[int], None] | None = None, bad: int | None = None, size: int = 8) -> None:
        self.position, self.before, self.bad, self.size = 0, before, bad, size

    def __next__(self) -> dict[str, np.ndarray]:
        if self.before:
            self.before(self.position)
        found = batch(self.position, self.size)
        if self.position == self.bad:
            found["image"][0, 0, 0, 0] = np.nan
        self.position += 1
        return found

    def state(self) -> dict[str, int]:
        return {"position": self.position}

    def restore(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def kill_at(position: int) -> Callable[[int], None]:
    return lambda at: os.kill(os.getpid(), signal.SIGKILL) if at == position else None


if __name__ == "__main__":
    original = teacher(depth=4)
    job = distill_job(original, mixed(original), DistillConfig(steps=12, learning_rate=1e-3))
    at = int(sys.argv[2]) if len(sys.argv) > 2 else -1
    loop = LoopConfig(steps=12, log_every=4, save_every=3)
    state = fit(job, Stream(kill_at(at)), loop, Path(sys.argv[1]), show=False)
    np.savez(Path(sys.argv[1]) / "final.npz", *[np.asarray(x) for x in jax.tree.leaves(state)])
