"""Pickles of dictionaries of numpy arrays, read without executing anything: the form in which JAX ports share weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graftax.checkpoint.files import existing_file
from graftax.checkpoint.members import Refused, shown
from graftax.checkpoint.pickle_machine import Machine, Name, Stateful, checked_sizes, make_empty
from graftax.errors import BadInput

LARGEST_FILE = 1 << 30
"""Bytes of such a file; InceptionV3 takes 0.1 GB. About three times as much memory is used while reading."""

KINDS = {f"{kind}{size}" for kind in "fiu" for size in (1, 2, 4, 8)} - {"f1"} | {"b1"}
"""Element types of numpy, by its own short names."""


class _DType(Stateful):
    """An element type under construction: its byte order comes with the state."""

    def __init__(self, kind: str) -> None:
        self.dtype = np.dtype(kind)

    def set_state(self, state: Any) -> None:
        # (version, byte order, subarray, names, fields, size, alignment, flags); fields would make a structured type.
        if not isinstance(state, tuple) or len(state) != 8 or state[2:5] != (None, None, None):
            raise Refused("an element type that is no plain number")
        if state[1] not in ("<", "|", "="):
            raise Refused(f"byte order {shown(state[1])}, expected little")


class _Array(Stateful):
    """An array under construction: everything comes with the state."""

    value: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("an array with an unknown state")
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran is True else "C")


def read_pickled_arrays(path: str | Path) -> dict[str, Any]:
    """The nested dictionary of numpy arrays that was pickled into `path`: text keys, leaves read-only arrays of numbers.

    Pickle protocols 2 to 5, of numpy 1 and 2. Raises `BadInput`, one line with the file's name and the reason, on
    anything else in the file: nothing in it is called or imported.
    """
    path = existing_file(path)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise Refused(f"{path.stat().st_size} bytes, expected at most {LARGEST_FILE}")
        data = path.read_bytes()
        found = _tree(Machine(_names(len(data)), _no_storage).run(data))
    except Refused as reason:
        raise BadInput(f"{path}: refused, {reason}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    if not isinstance(found, dict):
        raise BadInput(f"{path}: refused, it holds an array, expected a dictionary of arrays")
    return found


def _tree(value: object) -> Any:
    if isinstance(value, Mapping):
        if any(not isinstance(key, str) for key in value):
            raise Refused("a dictionary key that is no text")
        return {key: _tree(item) for key, item in value.items()}
    if isinstance(value, _Array):
        value = value.value
    if not isinstance(value, np.ndarray):
        raise Refused(f"a {type(value).__name__}, expected numpy arrays in dictionaries")
    return value


def _names(budget: int) -> dict[str, Name]:
    """What a pickle may ask for. `budget`: bytes that its texts may become; one text could be encoded many times."""
    left = [budget]

    def encode(args: tuple) -> bytes:
        # Protocol 2 has no bytes: they are text in Latin-1.
        if len(args) != 2 or not isinstance(args[0], str) or args[1] != "latin1":
            raise Refused("a call of _codecs.encode that makes no bytes of an array")
        left[0] -= len(args[0])
        if left[0] < 0:
            raise Refused("more bytes than the file has")
        return args[0].encode("latin-1")

    names = {
        "numpy ndarray": Name(),
        "numpy dtype": Name(build=_make_dtype),
        "_codecs encode": Name(build=encode),
        "__builtin__ bytes": Name(build=make_empty(bytes)),  # protocol 2, of an empty array
        "collections OrderedDict": Name(build=make_empty(dict)),
    }
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray _reconstruct"] = Name(build=lambda args: _Array())
        names[f"{core}.numeric _frombuffer"] = Name(build=_from_buffer)
    return names


def _no_storage(identifier: object) -> Any:
    raise Refused("a persistent id, which only PyTorch's files have")


def _make_dtype(args: tuple) -> _DType:
    if not args or not isinstance(args[0], str) or args[0] not in KINDS:
        raise Refused(f"element type {shown(args[0]) if args else 'none'}, expected plain numbers")
    return _DType(args[0])


def _from_buffer(args: tuple) -> np.ndarray:
    """numpy.core.numeric._frombuffer(bytes, dtype, shape, order)."""
    if len(args) != 4 or args[3] not in ("C", "F"):
        raise Refused("an array with an unknown order")
    return _array(*args)


def _array(data: object, dtype: object, shape: object, order: Any) -> np.ndarray:
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _DType):
        raise Refused("an array that is not made of bytes and an element type")
    sizes = checked_sizes(shape, "array shape")
    array = np.frombuffer(data, dtype.dtype).reshape(sizes, order=order)
    array.flags.writeable = False
    return array
