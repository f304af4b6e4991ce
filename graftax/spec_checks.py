"""Checks of the values that make a `ModelSpec`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from graftax.errors import BadInput

Option = int | float | bool | str
Options = tuple[tuple[str, Option], ...]


def checked_options(options: Iterable[tuple[str, Option]], where: str) -> Options:
    """`options` sorted by name. Raises `BadInput` on what is no such pair, numbers not finite, names given twice."""
    pairs = tuple(options)
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise BadInput(f"{where}: option {pair!r}, expected (name, value) pairs")
        name, value = pair
        if not isinstance(value, int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
            raise BadInput(f"{where} option {name}: got {value!r}, expected a finite number, true, false or text")
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise BadInput(f"{where}: options {sorted(names)}, expected each once")
    return tuple(sorted(pairs))


def check_text(value: Any, where: str) -> None:
    """Raise `BadInput` unless `value` is a name."""
    if not isinstance(value, str) or not value:
        raise BadInput(f"{where}: got {value!r}, expected a name")


def check_count(value: Any, where: str, least: int = 1) -> None:
    """Raise `BadInput` unless `value` is an integer from `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise BadInput(f"{where}: got {value!r}, expected {'a positive integer' if least else 'an integer from 0'}")


def check_number(value: Any, where: str) -> None:
    """Raise `BadInput` unless `value` is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadInput(f"{where}: got {value!r}, expected a finite number")
