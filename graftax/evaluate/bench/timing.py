"""Interleaved timing: round after round of every candidate, so that all of them meet the same machine."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax

from graftax.errors import BadInput

K = TypeVar("K")


@dataclass(frozen=True)
class Timing:
    """Wall times of one candidate.

    Attributes:
        seconds: one per round.
    """

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """The fastest round: what the machine can do when left alone."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The middle round."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(median - fastest) / fastest: how much the rounds were disturbed."""
        return self.median / self.best - 1

    def over(self, other: Timing) -> float:
        """How many times longer than `other`: the median of the ratios of neighbouring runs."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))

    def plus(self, other: Timing) -> Timing:
        """Both one after the other, round by round."""
        return Timing(tuple(a + b for a, b in zip(self.seconds, other.seconds, strict=True)))


def interleaved(candidates: Mapping[K, Callable[[], Any]], rounds: int, warmup: int = 1) -> dict[K, Timing]:
    """Time each candidate `rounds` times in turn, after `warmup` calls of each that do not count.

    JAX results are waited for. Raises `BadInput` if `rounds` is below 1.
    """
    if rounds < 1:
        raise BadInput(f"bench rounds: got {rounds}, expected 1 or more")
    for _ in range(warmup):
        for candidate in candidates.values():
            jax.block_until_ready(candidate())
    seconds: dict[K, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            jax.block_until_ready(candidate())
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def temp_mb(compiled: jax.stages.Compiled) -> float | None:
    """Working memory of a compiled function in MB, beside its arguments and results; None where XLA does not tell."""
    memory = compiled.memory_analysis()
    return None if memory is None else memory.temp_size_in_bytes / 1e6


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Memory that a compiled function needs at once: arguments, results, temporaries; 0 where XLA does not tell."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    return memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes


def free_memory() -> int:
    """Bytes that are free on the first device, or for a CPU on this machine."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # no Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def load() -> float:
    """Load average of the last minute, rounded: processes that wanted a core."""
    return round(os.getloadavg()[0], 2)
