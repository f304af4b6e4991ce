"""`StopRequest`: turn SIGTERM and Ctrl-C on any host into one answer that all hosts get at the same step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from graftax import interrupts

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Context in which the first SIGTERM or SIGINT is only noted; a second one acts as usual. `poll` tells of it.

    Python allows handlers in the main thread only; elsewhere, and with `enabled=False`, signals are left alone. So are
    those that whoever started the process chose to ignore, as a shell does with SIGINT for a job in the background.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self._noted = 0
        self._heard = SIGNALS if enabled and threading.current_thread() is threading.main_thread() else ()
        self._previous: dict[signal.Signals, Any] = {}
        self._vote = _Vote() if enabled and jax.process_count() > 1 else None

    def __enter__(self) -> StopRequest:
        heard = [sig for sig in self._heard if signal.getsignal(sig) not in (signal.SIG_IGN, None)]
        if heard:
            interrupts.expect()
        self._previous = {sig: signal.signal(sig, self._note) for sig in heard}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()
        if not self._noted:
            interrupts.withdraw()

    def poll(self) -> str:
        """The name of the signal that came, or "". All processes must call this once per step.

        Alone, this is what has come by now. With other processes it is what any of them had got at the call before, so
        that all have the same answer and none waits: the numbers travel while the device is busy with a step.
        """
        number = self._vote.exchange(self._noted) if self._vote else self._noted
        return signal.Signals(number).name if number else ""

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = number
        self._restore()

    def _restore(self) -> None:
        for sig, handler in self._previous.items():
            signal.signal(sig, handler)
        self._previous = {}


class _Vote:
    """The largest of the numbers that all processes gave at the call before."""

    def __init__(self) -> None:
        devices = np.array(jax.devices())
        self._shape = devices.shape
        self._split = NamedSharding(Mesh(devices, ("host",)), PartitionSpec("host"))
        self._max = jax.jit(jnp.max, out_shardings=NamedSharding(self._split.mesh, PartitionSpec()))
        self._answer: Any = 0

    def exchange(self, number: int) -> int:
        """Send `number` on its way, return the answer to the last one (0 at first)."""
        last, mine = self._answer, np.full(1, number, np.int32)
        self._answer = self._max(jax.make_array_from_callback(self._shape, self._split, lambda _: mine))
        return int(last)
