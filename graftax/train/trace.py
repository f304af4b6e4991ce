"""Profiler traces of chosen training steps."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import jax

from graftax.checkpoint.paths import work_path
from graftax.train.record import local_folder, upload


class StepTrace:
    """Context that traces steps `first` to `last` (counted from 1, both included) into `folder`; `steps` None: no trace.

    The result is for xprof or TensorBoard's profile plugin. A trace still running when the context ends is written too.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, steps: tuple[int, int] | None) -> None:
        self._folder = None if folder is None else work_path(folder)
        self._steps = steps if folder else None
        self._running: Path | None = None

    def __enter__(self) -> StepTrace:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def around(self, step: int) -> AbstractContextManager[object]:
        """Context in which `step` is sent to the device: the profiler then knows its number."""
        if self._folder and self._steps and not self._running and self._steps[0] <= step <= self._steps[1]:
            self._running = local_folder(self._folder)
            jax.profiler.start_trace(str(self._running))
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def finished(self, step: int) -> None:
        """Say that the device is done with `step`."""
        if self._steps and step >= self._steps[1]:
            self._stop()

    def _stop(self) -> None:
        if self._running and self._folder:
            jax.profiler.stop_trace()
            upload(self._running, self._folder)
            self._running = None
