"""Ctrl-C and SIGTERM: the process ends at once, and what it had half written goes with it.

Python's own way, KeyboardInterrupt in the main thread, comes late (never while XLA compiles or runs), in odd places (pages
of traceback from an import), and ends in an interpreter that is taken apart beside XLA's running threads, which now and then
is a segmentation fault. SIGTERM's way leaves everything where it is. So the command line has a thread that waits for both
and ends the process itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""Signals that ask for an end, and what is said then."""

_EXIT = 128
"""The exit code is this and the signal's number, as a shell reports it: 130 after Ctrl-C."""

_HELD = 10.0
"""Seconds that the main thread waits for its end; it never comes back but for a bug."""

_FLUSHED = 0.3
"""Seconds in which the reader of our output takes what has been printed."""


class _Count:
    """How the signals stand.

    Attributes:
        heard: how many there were.
        answered: how many of these somebody answers by himself (`expect`).
    """

    heard = 0
    answered = 0


_unfinished: set[Path] = set()


def end_at_once() -> None:
    """From here on Ctrl-C or SIGTERM ends this process, whatever it is doing: one line, no traceback.

    For the main thread of a command. A process that was told to ignore a signal, as a shell does with Ctrl-C in the
    background, goes on ignoring it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, _hold)
    threading.Thread(target=_watch, args=(reader,), name="interrupts", daemon=True).start()


def ignore() -> None:
    """From here on the signals do nothing. For the very end: Python gives them back to the system there, without a word."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def expect() -> None:
    """The next signal is answered by whoever calls this, who has a handler of his own; one after that ends."""
    _Count.answered = _Count.heard + 1


def withdraw() -> None:
    """Nobody answers any more: the next signal ends."""
    _Count.answered = _Count.heard


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """While the block lasts, `path` (a file or folder) is removed if a signal ends the process."""
    _unfinished.add(path)
    try:
        yield
    finally:
        _unfinished.discard(path)


def _hold(number: int, frame: FrameType | None) -> None:
    """What the main thread does while the process is ended: nothing more to any file."""
    time.sleep(_HELD)
    raise KeyboardInterrupt


def _watch(reader: int) -> None:
    while True:
        for number in os.read(reader, 64):
            _Count.heard += number in SIGNALS
            if _Count.heard > _Count.answered:
                _end(signal.Signals(number))


def _end(number: signal.Signals) -> None:
    for path in list(_unfinished):
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    flush = threading.Thread(target=sys.stdout.flush, daemon=True)  # may wait for ever, on a reader or on the main thread
    flush.start()
    flush.join(_FLUSHED)
    with contextlib.suppress(OSError):
        os.write(2, f"{chr(10) * os.isatty(2)}graftax: {SIGNALS[number]}\n".encode())
    os._exit(_EXIT + number)
