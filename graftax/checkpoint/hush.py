"""What goes wrong in orbax's background is raised by the next call; what keeps it from being printed before, by pages."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

_LOGGERS = {"absl": ("orbax",), "asyncio": ("orbax", "tensorstore", "OCDBT")}
"""Loggers, and words by which the errors that orbax and tensorstore leave there are known."""

_NEVER_AWAITED = "coroutine '(async_serialize|.*write_fragment|_create_paths).*' was never awaited"
"""What Python says at the end of orbax's writes that have not even begun when the first one fails."""


def hush() -> None:
    """Drop orbax's errors from the logs, and the complaints of tensorstore's writes whose event loop is gone already: when
    the first of many writes fails, orbax closes the loop on the others. Anything else is shown as before."""
    for name, words in _LOGGERS.items():
        if not any(isinstance(one, _Filter) for one in logging.getLogger(name).filters):
            logging.getLogger(name).addFilter(_Filter(words))
    warnings.filterwarnings("ignore", _NEVER_AWAITED, RuntimeWarning)
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)


class _Filter(logging.Filter):
    def __init__(self, words: tuple[str, ...]) -> None:
        super().__init__()
        self._words = words

    def filter(self, record: logging.LogRecord) -> bool:
        text = f"{record.pathname} {record.getMessage()} {record.exc_info}"
        return record.levelno < logging.ERROR or not any(word in text for word in self._words)


class _Hook:
    def __init__(self, show: Any) -> None:
        self._show = show

    def __call__(self, trouble: Any) -> None:
        if not (isinstance(trouble.exc_value, RuntimeError) and str(trouble.exc_value) == "Event loop is closed"):
            self._show(trouble)
