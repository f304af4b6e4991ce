"""`StopRequest`: turn SIGTERM and Ctrl-C into a flag that a loop looks at between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Context in which the first SIGTERM or SIGINT only sets `requested` to its name; a second one acts as usual.

    Python allows handlers in the main thread only; elsewhere, and with `enabled=False`, signals are left alone. So are
    those that whoever started the process chose to ignore, as a shell does with SIGINT for a job in the background.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.requested = ""
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if self._enabled:
            heard = [sig for sig in SIGNALS if signal.getsignal(sig) not in (signal.SIG_IGN, None)]
            self._previous = {sig: signal.signal(sig, self._note) for sig in heard}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for sig, handler in self._previous.items():
            signal.signal(sig, handler)
        self._previous = {}
