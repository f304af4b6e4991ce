"""Saving a training state: how long training waits, and how long the files take in the background."""

from __future__ import annotations

import statistics
import time

import jax

from graftax.checkpoint.files import scratch
from graftax.evaluate.bench.rows import Rows
from graftax.evaluate.bench.timing import load


def bench_save(megabytes: tuple[int, ...] = (100, 400), rounds: int = 5) -> Rows:
    """`Checkpoints` in a temporary folder, with states of so many MB of float32.

    Columns: megabytes, blocked_s (until `save` returns), background_s (from then until it is on disk), restore_s, open_s (a
    new process's start: the newest checkpoint is verified), medians over rounds; load.
    """
    return [_row(size, rounds) for size in megabytes]


def _row(megabytes: int, rounds: int) -> dict[str, float | int | None]:
    from graftax.checkpoint.manager import Checkpoints  # half a second that other benches save

    busy = load()
    state = {f"leaf{i}": jax.random.normal(jax.random.key(i), (250, 1000)) for i in range(megabytes)}
    jax.block_until_ready(state)
    times: list[tuple[float, float, float, float]] = []
    with scratch() as folder:
        store = Checkpoints(folder)
        for step in range(1, rounds + 1):
            marks = [time.perf_counter()]
            store.save(step, state, {}, None)
            marks.append(time.perf_counter())
            store.wait()
            marks.append(time.perf_counter())
            jax.block_until_ready(store.restore(step, state)[0])
            marks.append(time.perf_counter())
            store.close()
            marks.append(time.perf_counter())
            store = Checkpoints(folder)
            opened = time.perf_counter() - marks[4]
            times.append((marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2], opened))
        store.close()
    blocked, background, restored, opened = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "megabytes": megabytes, "blocked_s": blocked, "background_s": background, "restore_s": restored, "open_s": opened,
        "load": busy,
    }  # fmt: skip
