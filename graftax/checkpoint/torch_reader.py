"""PyTorch zip checkpoints, read without PyTorch and without executing anything. The only file that touches pickles.

A `.pt` file is a zip archive: `data.pkl`, a pickle of the object saved, and one member `data/<key>` per storage with raw
little-endian numbers. A pickle is a program for a stack machine; here is a machine for the few instructions that
checkpoints need. It has no way to call or import anything: instructions outside `_PUSH` and `_Machine`, and names
outside `_GLOBALS`, are refused, and what is left builds dicts, lists, tuples, numbers, strings and views of the file.

Memory is bounded by `LARGEST_PICKLE` and `MOST_INSTRUCTIONS`, not by what the file claims: tensors are views of the
memory-mapped file, checked to lie inside it.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from graftax.checkpoint.files import existing_file
from graftax.checkpoint.members import Member, Refused, shown, stored_members
from graftax.errors import BadInput

LARGEST_PICKLE = 16 << 20
"""Bytes of `data.pkl`. A model of 1,000 tensors with optimiser state takes 0.4 MB."""

MOST_INSTRUCTIONS = 500_000
"""Instructions of `data.pkl`, about 45 per tensor. None makes more than some 100 bytes, besides its own text."""

LARGEST_SIZE = 1 << 48
MOST_AXES = 16

STORAGES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
"""PyTorch's storage classes and their element types (torch/storage.py)."""


@dataclass
class Record:
    """An `argparse.Namespace` from a checkpoint as mere data: its attributes in a dict, never set as attributes."""

    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Storage:
    """Raw bytes of one storage and the type of its elements."""

    raw: np.ndarray
    dtype: np.dtype

    @property
    def length(self) -> int:
        return self.raw.size // self.dtype.itemsize


@dataclass(frozen=True)
class _Global:
    """What a permitted global name stands for: an element type, or one of the functions below."""

    dtype: np.dtype | None = None
    build: Callable[[tuple], Any] | None = None


def read_torch(path: str | Path) -> dict:
    """The dictionary in a PyTorch zip checkpoint: its tensors as read-only numpy arrays, views of the mapped file.

    Float64/32/16, bfloat16 (as `ml_dtypes.bfloat16`), integer, uint8 and bool tensors of any strides; storages may be
    shared. `OrderedDict` becomes a dict, `argparse.Namespace` a `Record`, `torch.Size` a tuple, a parameter its tensor.
    Nothing is executed and nothing but the pickle is read. Keep the file unchanged while the arrays are in use.

    Raises `BadInput`, one line with the file's name and the reason, on everything else: other globals, other pickle
    instructions, the format from before PyTorch 1.6, compressed, truncated or contradictory archives, tensors that
    reach beyond their storage.
    """
    path = existing_file(path)
    try:
        result = _read(path)
    except Refused as reason:
        raise BadInput(f"{path}: refused, {reason}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    return result


def _read(path: Path) -> dict:
    members = stored_members(path)
    if "data.pkl" not in members:
        raise Refused("no member data.pkl, expected a checkpoint written by torch.save")
    if members["data.pkl"].size > LARGEST_PICKLE:
        raise Refused(f"data.pkl of {members['data.pkl'].size} bytes, expected at most {LARGEST_PICKLE}")
    mapped = np.memmap(path, mode="r").view(np.ndarray)

    def content(member: Member) -> np.ndarray:
        return mapped[member.start : member.start + member.size]

    order = content(members.get("byteorder", Member(0, 0)))[:16].tobytes()
    if order not in (b"little", b""):
        raise Refused(f"byte order {shown(order.decode('latin-1'))}, expected little")
    result = _Machine(_storage_reader(members, content)).run(content(members["data.pkl"]).tobytes())
    if not isinstance(result, dict):
        raise Refused(f"it holds a {type(result).__name__}, expected a dictionary")
    return result


def _storage_reader(members: Mapping[str, Member], content: Callable[[Member], np.ndarray]) -> Callable[[object], _Storage]:
    """Resolves a persistent id, ("storage", <storage class>, key, device, element count), to the member data/<key>."""

    def storage(identifier: object) -> _Storage:
        if not isinstance(identifier, tuple) or len(identifier) != 5 or not _is_text(identifier[0], "storage"):
            raise Refused("a persistent id that names no storage")
        _, kind, key, device, count = identifier
        if not isinstance(kind, _Global) or kind.dtype is None or not isinstance(device, str):
            raise Refused("a storage of no known type")
        if not isinstance(key, str) or not re.fullmatch("[0-9]{1,12}", key):
            raise Refused(f"storage key {shown(key)}, expected a number")
        member = members.get(f"data/{key}")
        if member is None:
            raise Refused(f"storage data/{key} is missing")
        if _size(count, f"storage data/{key}") * kind.dtype.itemsize != member.size:
            raise Refused(f"storage data/{key} has {member.size} bytes, its tensor says {count} x {kind.dtype}")
        return _Storage(content(member), kind.dtype)

    return storage


def _size(value: object, what: str) -> int:
    """`value` as a count; compared before it is printed, since an integer in a pickle may have thousands of digits."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_SIZE:
        raise Refused(f"{what}: a size that is no integer within 0..2^48")
    return value


def _sizes(value: object, what: str) -> list[int]:
    if not isinstance(value, tuple) or len(value) > MOST_AXES:
        raise Refused(f"{what}: expected a tuple of at most {MOST_AXES}")
    return [_size(item, what) for item in value]


def _is_text(value: object, expected: str) -> bool:
    return isinstance(value, str) and value == expected


def _rebuild_tensor(args: tuple) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None)."""
    if len(args) not in (6, 7) or not isinstance(args[0], _Storage):
        raise Refused("a tensor that is not built from a storage")
    if len(args) == 7 and args[6]:
        raise Refused("a tensor with conjugate or negative bits")
    storage: _Storage = args[0]
    offset, shape, strides = _size(args[1], "tensor offset"), _sizes(args[2], "tensor shape"), _sizes(args[3], "strides")
    if len(shape) != len(strides):
        raise Refused(f"a tensor of {len(shape)} axes with {len(strides)} strides")
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    count, itemsize = math.prod(shape), storage.dtype.itemsize
    end = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
    # A tensor with more elements than its storage would repeat some: harmless to map, ruinous to copy.
    if max(end, count) > storage.length:
        raise Refused(f"a tensor of {count} elements up to element {end} in a storage of {storage.length}")
    return np.ndarray(shape, storage.dtype, storage.raw, offset * itemsize, [itemsize * step for step in strides])


def _rebuild_parameter(args: tuple) -> np.ndarray:
    """torch._utils._rebuild_parameter(tensor, requires_grad, hooks)."""
    if len(args) != 3 or not isinstance(args[0], np.ndarray):
        raise Refused("a parameter that is not built from a tensor")
    return args[0]


def _make_size(args: tuple) -> tuple[int, ...]:
    if len(args) != 1:
        raise Refused("torch.Size: expected one argument")
    return tuple(_sizes(args[0], "torch.Size"))


def _make_empty(kind: type) -> Callable[[tuple], Any]:
    """A constructor that takes no arguments: contents follow by other instructions."""

    def make(args: tuple) -> Any:
        if args:
            raise Refused(f"{kind.__name__} built with arguments, expected none")
        return kind()

    return make


_GLOBALS: dict[str, _Global] = {
    **{f"torch {name}": _Global(dtype=dtype) for name, dtype in STORAGES.items()},
    "torch._utils _rebuild_tensor_v2": _Global(build=_rebuild_tensor),
    "torch._utils _rebuild_parameter": _Global(build=_rebuild_parameter),
    "torch Size": _Global(build=_make_size),
    "collections OrderedDict": _Global(build=_make_empty(dict)),
    "argparse Namespace": _Global(build=_make_empty(Record)),
}

_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES")
_PUSH = frozenset(_NUMBERS + _TEXTS)
"""Instructions that push the value they carry."""

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class _Machine:
    """The stack machine. `marks` holds the stacks below each open MARK, as in Python's own unpickler."""

    def __init__(self, storage: Callable[[object], _Storage]) -> None:
        self.storage = storage
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """Execute a pickle; raises `Refused` on anything unknown or malformed."""
        try:
            for count, (code, argument, position) in enumerate(pickletools.genops(data)):
                if count >= MOST_INSTRUCTIONS:
                    raise Refused(f"data.pkl has more than {MOST_INSTRUCTIONS} instructions")
                if code.name == "STOP":
                    return self._stop(position == len(data) - 1)
                self._step(code.name, argument)
        except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
            raise Refused(f"data.pkl is malformed ({shown(str(error))})") from None
        raise Refused("data.pkl does not end")

    def _stop(self, at_end: bool) -> Any:
        if not at_end or len(self.stack) != 1 or self.marks:
            raise Refused("data.pkl is malformed (something is left over at its end)")
        return self.stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        if name in _PUSH:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _INSTRUCTIONS:
            _INSTRUCTIONS[name](self, argument)
        else:
            raise Refused(f"pickle instruction {name}, which no checkpoint of tensors needs")

    def to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise Refused("data.pkl is malformed (stack empty)")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def tuple_to_mark(self, _: Any) -> None:
        items = self.to_mark()
        self.stack.append(tuple(items))

    def append(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise Refused(f"appending to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise Refused(f"setting items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # No tuples: hashing a deeply nested one would overrun the C stack.
            if not isinstance(key, str | int):
                raise Refused(f"a dictionary key of type {type(key).__name__}, expected text or integer")
            target[key] = value

    def look_up(self, name: str) -> None:
        """GLOBAL: the import instruction of pickles, here a look-up in a short table."""
        if name not in _GLOBALS:
            raise Refused(f"it asks for {shown(name.replace(' ', '.', 1))}, which is not on the list of harmless names")
        self.stack.append(_GLOBALS[name])

    def look_up_pair(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Refused("a global whose name is not text")
        self.look_up(f"{module} {name}")

    def call(self, _: Any) -> None:
        """REDUCE and NEWOBJ: the call instructions of pickles, here only for the functions in this file."""
        args, target = self.stack.pop(), self.stack.pop()
        if not isinstance(target, _Global) or target.build is None or not isinstance(args, tuple):
            raise Refused(f"a call of a {type(target).__name__}")
        self.stack.append(target.build(args))

    def set_state(self, _: Any) -> None:
        """BUILD: attributes of a Namespace become fields; those of an OrderedDict (`_metadata`) are left out."""
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, dict | Record) or not isinstance(state, dict):
            raise Refused(f"state of type {type(state).__name__} for a {type(target).__name__}")
        if any(not isinstance(key, str) or key.startswith("__") for key in state):
            raise Refused("state with special attribute names")
        if isinstance(target, Record):
            target.fields.update(state)

    def load_storage(self, _: Any) -> None:
        self.stack.append(self.storage(self.stack.pop()))


_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": _Machine.mark,
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "TUPLE": _Machine.tuple_to_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.to_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(), machine.stack.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.to_mark()),
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.look_up,
    "STACK_GLOBAL": _Machine.look_up_pair,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.load_storage,
}
