"""What a training run writes down: windowed means, and `metrics.jsonl` that resumption keeps free of duplicates."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"


class Window:
    """Means of step metrics and images per second since it was made; `pause` stops the clock."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = self._images = 0
        self._start = time.perf_counter()

    def add(self, numbers: Mapping[str, float], images: int) -> None:
        """Count one step over `images` images."""
        for name, value in numbers.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1
        self._images += images

    def means(self) -> dict[str, float]:
        """{metric: mean over the steps} and images_per_s."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        return {k: v / self._steps for k, v in self._sums.items()} | {"images_per_s": self._images / seconds}

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside does not count."""
        began = time.perf_counter()
        yield
        self._start += time.perf_counter() - began


class MetricsFile:
    """One JSON line per record in folder/metrics.jsonl, each also passed to `listener`; folder None: no file.

    On opening, lines of steps beyond `step` (left by a run that was cut off after its last checkpoint) and a torn last
    line are dropped, so that the run that resumes at `step` writes them once.
    """

    def __init__(self, folder: Path | None, step: int = 0, listener: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._path = folder / FILE if folder else None
        self._listener = listener
        if self._path and self._path.exists():
            kept = [line for line in read_metrics(self._path.parent) if line["step"] <= step]
            whole = self._path.with_suffix(".tmp")
            whole.write_text("".join(json.dumps(line) + "\n" for line in kept))
            os.replace(whole, self._path)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record (it must hold `step`); numbers JSON cannot hold become null."""
        record = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        if self._listener:
            self._listener(record)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of folder/metrics.jsonl in order, without a last line that was cut off in writing."""
    lines = (folder / FILE).read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]  # whole lines end in a newline
