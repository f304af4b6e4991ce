"""A linear regression as a `Job`: the loop's mechanics in milliseconds. Run as a script it trains until it is done or
kills itself: linear_job.py WORKDIR [KILL_AT_BATCH [SIGNAL]]."""

from __future__ import annotations

import functools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax.train import Job, LoopConfig, OptimiserConfig, TrainState, fit, train_job

CONFIG = LoopConfig(steps=20, seed=3, log_every=4, save_every=6)
FAST = OptimiserConfig(learning_rate=0.05, warmup_steps=5)


def loss_fn(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    noise = 0.1 * jax.random.normal(key, batch["label"].shape)
    error = batch["image"] @ params["w"] + params["b"] - batch["label"] + noise
    return jnp.mean(error**2), {"bias": params["b"][0]}


def params() -> dict[str, jax.Array]:
    return {"w": jnp.full((3,), 0.5), "b": jnp.zeros((1,))}


def linear_job(**options: Any) -> Job[TrainState]:
    """A job of other options compiles its step anew; the one without any is always the same."""
    return _job(**options) if options else _plain()


def _job(**options: Any) -> Job[TrainState]:
    return train_job(params, loss_fn, **{"optimiser": FAST, "ema_decay": 0.9, **options})


_plain = functools.cache(_job)


class Stream:
    """Batch i is a function of i. `before(i)` runs first; batch `bad` holds a NaN."""

    def __init__(self, before: Any = None, bad: int | None = None) -> None:
        self.position, self.before, self.bad = 0, before, bad

    def __next__(self) -> dict[str, np.ndarray]:
        if self.before:
            self.before(self.position)
        rng = np.random.default_rng(self.position)
        image = rng.standard_normal((8, 3)).astype(np.float32)
        label = image @ np.float32([1, 2, 3]) + 4
        if self.position == self.bad:
            image[0, 0] = np.nan
        self.position += 1
        return {"image": image, "label": label}

    def state(self) -> dict[str, int]:
        return {"position": self.position}

    def restore(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def send_at(position: int, number: int) -> Any:
    return lambda at: os.kill(os.getpid(), number) if at == position else None


if __name__ == "__main__":
    at = int(sys.argv[2]) if len(sys.argv) > 2 else -1
    number = signal.Signals[sys.argv[3]] if len(sys.argv) > 3 else signal.SIGKILL
    state = fit(linear_job(), Stream(send_at(at, number)), CONFIG, Path(sys.argv[1]), show=False)
    flat = [np.asarray(x) for x in jax.tree.leaves(state)]
    np.savez(Path(sys.argv[1]) / "final.npz", *flat)
