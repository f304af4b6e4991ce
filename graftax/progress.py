"""What is told while work goes on, on stderr: `Progress`, how far it has come, and `say`, what is being done.

Results are no part of this: they are returned, or printed to stdout. `silence` turns both off.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

_silent: list[bool] = []
"""Holds something inside of `silence`."""


def say(text: str) -> None:
    """Print a line that accompanies work, to stderr."""
    if not _silent:
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Inside of the block nothing is said and no progress is shown."""
    _silent.append(True)
    try:
        yield
    finally:
        _silent.pop()


class Progress:
    """Context that reports `total` units of work; call `advance` after each piece.

        with Progress(steps, "train", unit="step") as progress:
            for ...:
                progress.advance(metrics={"loss": 0.12})

    On a terminal: a tqdm bar with rate, time left and the latest metrics. Otherwise (pipes, log files): one plain
    line every `interval` seconds and one at the end. `initial` units count as done before the start, so that a
    resumed run shows its true position. Programs are compiled in the first piece of work, so the rate and the time left
    are those of the pieces after it; a bar says "compiling" until then. `show=False` prints nothing.
    """

    def __init__(
        self, total: int, label: str, *, unit: str = "step", initial: int = 0, show: bool = True,
        interval: float = 10.0, file: TextIO | None = None,
    ) -> None:  # fmt: skip
        self.total, self.label, self.unit = total, label, unit
        self.done = self._initial = self._told = initial
        self._show, self._interval = show and not _silent, interval
        self._file = sys.stderr if file is None else file
        self._metrics: dict[str, float] = {}
        self._bar: tqdm | None = None

    def __enter__(self) -> Progress:
        self._start = self._printed = time.perf_counter()
        self._compiled: tuple[float, int] | None = None  # when the first piece was done, and how much then was
        if self._show and self._file.isatty():
            # Two writers on one terminal: leave=True keeps the finished bar above what is printed next.
            self._bar = tqdm(
                total=self.total, initial=self._initial, desc=f"{self.label}, compiling", unit=self.unit, file=self._file,
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
        first = self._compiled is None
        if first:
            self._compiled = time.perf_counter(), self.done
        if metrics:
            self._metrics = {name: float(value) for name, value in metrics.items()}
        if self._bar is not None:
            if metrics:
                self._bar.set_postfix_str(self._describe(), refresh=False)
            if first:
                self._start_bar(self._bar)
            else:
                self._bar.update(count)
        elif self._show and time.perf_counter() - self._printed >= self._interval:
            self._print()

    def skip(self, count: int) -> None:
        """Take `count` units that will not be done off the total."""
        self.total -= count
        if self._bar is not None:
            self._bar.total = self.total

    def _start_bar(self, bar: tqdm) -> None:
        """The rate and the time left count from here."""
        bar.n = bar.initial = bar.last_print_n = self.done
        bar.start_t = bar.last_print_t = time.time()  # tqdm's clock
        bar.set_description(self.label)

    def _describe(self) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in self._metrics.items())

    def _print(self) -> None:
        self._printed, self._told = time.perf_counter(), self.done
        assert self._compiled is not None, "something was done"
        begun, before = self._compiled
        rate = (self.done - before) / max(self._printed - begun, 1e-9)
        parts = [f"{self.label} {self.done}/{self.total} ({self.done / max(self.total, 1):.0%})"]
        parts += [f"{rate:.3g} {self.unit}/s"] if rate else []
        if self.done == self.total:
            parts.append(f"took {tqdm.format_interval(self._printed - self._start)}")
        elif rate:
            parts.append(f"{tqdm.format_interval((self.total - self.done) / rate)} left")
        else:
            parts.append(f"the first after {tqdm.format_interval(begun - self._start)}")
        print(", ".join([*parts, self._describe()]).rstrip(", "), file=self._file, flush=True)
