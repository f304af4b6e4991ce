"""`Watchdog`: when training hangs, say where."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

import jax

from graftax.checkpoint.paths import WorkPath, work_path

GRACE = 3600.0
"""Seconds more for what may take long: compiling, evaluating, saving, restoring."""

_WRITING = 30.0
"""Seconds that the file may take: storage may be the very thing that hangs."""


class Watchdog:
    """Context with a thread that expects a `beat` every `seconds` (0: it expects nothing).

    Where none comes, the stacks of all threads go to stderr and to a file hang-TIME-PROCESS.txt in `folder` (None: no
    file), once per hang; with `abort` the process then ends with exit code 1. Until the first beat, and inside `patience`,
    `grace` seconds more are allowed. Code that hangs without releasing Python's lock hides from it.
    """

    def __init__(
        self, seconds: float, folder: str | os.PathLike[str] | None = None, *, abort: bool = False, grace: float = GRACE
    ) -> None:
        self._seconds, self._abort, self._grace = seconds, abort, grace
        self._folder = work_path(folder) if folder else None
        self._begun, self._deadline, self._doing = 0.0, math.inf, ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._expect("starting", self._grace)
        if self._seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(_WRITING)

    def beat(self, doing: str) -> None:
        """Something was finished; what is under way now is `doing`, and must be done in time."""
        self._expect(doing, 0.0)

    @contextmanager
    def patience(self, doing: str) -> Iterator[None]:
        """What happens inside may take the grace time as well."""
        self._expect(doing, self._grace)
        yield
        self.beat(f"after {doing}")

    def _expect(self, doing: str, extra: float) -> None:
        self._doing, self._begun = doing, time.monotonic()
        self._deadline = self._begun + self._seconds + extra

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() > self._deadline:
                self._deadline = math.inf  # until the next beat
                self._report()

    def _report(self) -> None:
        seconds = time.monotonic() - self._begun
        text = f"{self._doing}: not done after {seconds:.0f} s; stacks of all threads\n{_stacks()}"
        print(f"graftax: warning: {text}", file=sys.stderr, flush=True)
        if self._folder:
            writer = threading.Thread(target=self._write, args=(self._folder, text), daemon=True)
            writer.start()
            writer.join(_WRITING)
        if self._abort:
            print("graftax: error: hung, ended with exit code 1", file=sys.stderr, flush=True)
            os._exit(1)  # a main thread that hangs cannot be asked to raise

    @staticmethod
    def _write(folder: WorkPath, text: str) -> None:
        name = f"hang-{time.strftime('%Y%m%d-%H%M%S')}-{jax.process_index()}.txt"
        with suppress(OSError):  # stderr has it
            (folder / name).write_text(text)


def _stacks() -> str:
    """The stacks of all threads but this one, named, innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = {key: traceback.format_stack(frame) for key, frame in sys._current_frames().items()}
    del stacks[threading.get_ident()]
    return "\n".join(f"Thread {names.get(key, key)}:\n{''.join(stack)}" for key, stack in stacks.items())
