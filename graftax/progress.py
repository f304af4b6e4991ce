"""`Progress`: how far long work has come, as a bar on a terminal and as plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TextIO

from tqdm import tqdm


class Progress:
    """Context that reports `total` units of work; call `advance` after each piece.

        with Progress(steps, "train", unit="step") as progress:
            for ...:
                progress.advance(metrics={"loss": 0.12})

    On a terminal: a tqdm bar with rate, time left and the latest metrics. Otherwise (pipes, log files): one plain
    line every `interval` seconds and one at the end. `initial` units count as done before the start, so that a
    resumed run shows its true position and an honest rate. `show=False` prints nothing.
    """

    def __init__(
        self, total: int, label: str, *, unit: str = "step", initial: int = 0, show: bool = True,
        interval: float = 10.0, file: TextIO | None = None,
    ) -> None:  # fmt: skip
        self.total, self.label, self.unit = total, label, unit
        self.done = self._initial = self._told = initial
        self._show, self._interval = show, interval
        self._file = sys.stderr if file is None else file
        self._metrics: dict[str, float] = {}
        self._bar: tqdm | None = None

    def __enter__(self) -> Progress:
        self._start = self._printed = time.perf_counter()
        if self._show and self._file.isatty():
            # Two writers on one terminal: leave=True keeps the finished bar above what is printed next.
            self._bar = tqdm(
                total=self.total, initial=self._initial, desc=self.label, unit=self.unit, file=self._file,
                dynamic_ncols=True, leave=True,
            )  # fmt: skip
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._show and self.done > self._told:
            self._print()

    def advance(self, count: int = 1, *, metrics: Mapping[str, float] | None = None) -> None:
        """Report `count` more units done, and the latest `metrics` (name -> number) if there are new ones."""
        self.done += count
        if metrics:
            self._metrics = {name: float(value) for name, value in metrics.items()}
        if self._bar is not None:
            if metrics:
                self._bar.set_postfix_str(self._describe(), refresh=False)
            self._bar.update(count)
        elif self._show and time.perf_counter() - self._printed >= self._interval:
            self._print()

    def _describe(self) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in self._metrics.items())

    def _print(self) -> None:
        self._printed, self._told = time.perf_counter(), self.done
        elapsed = self._printed - self._start
        rate = (self.done - self._initial) / max(elapsed, 1e-9)
        left = tqdm.format_interval((self.total - self.done) / rate) if rate else "?"
        share = self.done / max(self.total, 1)
        parts = [f"{self.label} {self.done}/{self.total} ({share:.0%})", f"{rate:.3g} {self.unit}/s"]
        parts.append(f"{left} left" if self.done < self.total else f"took {tqdm.format_interval(elapsed)}")
        print(", ".join([*parts, self._describe()]).rstrip(", "), file=self._file, flush=True)
