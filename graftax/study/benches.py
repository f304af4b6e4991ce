"""Measurements by name, with settings as texts: what `graftax bench` asks for."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any

from graftax import config
from graftax.errors import BadInput, did_you_mean
from graftax.evaluate.bench import BENCHES, Rows


def named(name: str, settings: Sequence[str]) -> Callable[[], Rows]:
    """The measurement `name` with `settings` ("rounds=3") other than its defaults, still to be called.

    Raises `BadInput` on names and settings that are not known, and on values of another type.
    """
    if name not in BENCHES:
        names = ("list", *BENCHES)
        raise BadInput(f"bench {name!r}: expected one of {names}{did_you_mean(name, names)}")
    function = BENCHES[name]
    hints, known = typing.get_type_hints(function), _defaults(function)
    values = {}
    for key, text in config.read(None, settings).items():
        if key not in known:
            near = did_you_mean(key, known)
            raise BadInput(f"bench {name}: unknown setting {key!r}, expected one of {tuple(known)}{near}")
        values[key] = config.convert(hints[key], text, key)
    return functools.partial(function, **values)


def listed() -> tuple[list[dict[str, Any]], str]:
    """All measurements with their settings, as JSON types and as text."""
    found = [{"name": k, "what": (f.__doc__ or "").splitlines()[0], "settings": _defaults(f)} for k, f in BENCHES.items()]
    lines = []
    for one in found:
        settings = ", ".join(f"{key}={value}" for key, value in one["settings"].items())
        lines.append(f"{one['name']:<12}{one['what']}\n{'':<12}{settings}")
    return found, "\n".join(lines)


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    return {p.name: p.default for p in inspect.signature(function).parameters.values()}
