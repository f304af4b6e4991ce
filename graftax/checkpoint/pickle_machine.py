"""A stack machine for pickles that cannot call or import anything. The only file that touches pickles.

A pickle is a program. This machine knows the few instructions that tensors in dictionaries need; what a name in the
pickle stands for is looked up in a table that the reader of a format brings along, and calls reach only functions of that
table. Everything else is refused. What is left builds dicts, lists, tuples, numbers, strings, and whatever the table's
functions return.

Memory is bounded by the pickle's own length and `MOST_INSTRUCTIONS`, not by what it claims.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from graftax.checkpoint.members import Refused, shown

MOST_INSTRUCTIONS = 500_000
"""Instructions of one pickle, about 45 per tensor. None makes more than some 100 bytes, besides its own text."""

LARGEST_SIZE = 1 << 48
MOST_AXES = 16


@dataclass(frozen=True)
class Name:
    """What a permitted global name stands for: an element type, a function of this package, or a mere token."""

    dtype: np.dtype | None = None
    build: Callable[[tuple], Any] | None = None


class Stateful:
    """An object whose contents arrive by the BUILD instruction, after it was made."""

    def set_state(self, state: Any) -> None:
        """Take in `state`, untrusted. Raises `Refused`."""
        raise NotImplementedError


def checked_size(value: object, what: str) -> int:
    """`value` as a count; compared before it is printed, since an integer in a pickle may have thousands of digits."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_SIZE:
        raise Refused(f"{what}: a size that is no integer within 0..2^48")
    return value


def checked_sizes(value: object, what: str) -> list[int]:
    """`value` as a shape or strides, at most `MOST_AXES` of them."""
    if not isinstance(value, tuple) or len(value) > MOST_AXES:
        raise Refused(f"{what}: expected a tuple of at most {MOST_AXES}")
    return [checked_size(item, what) for item in value]


def check_attributes(state: object) -> dict[str, Any]:
    """`state` as attributes by name; raises `Refused` where they are none, or special ones."""
    if not isinstance(state, dict):
        raise Refused(f"state of type {type(state).__name__}, expected attributes by name")
    if any(not isinstance(key, str) or key.startswith("__") for key in state):
        raise Refused("state with special attribute names")
    return state


def make_empty(kind: type) -> Callable[[tuple], Any]:
    """A constructor that takes no arguments: contents follow by other instructions."""

    def make(args: tuple) -> Any:
        if args:
            raise Refused(f"{kind.__name__} built with arguments, expected none")
        return kind()

    return make


_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_TEXTS = (
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip
_PUSH = frozenset(_NUMBERS + _TEXTS)
"""Instructions that push the value they carry."""

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Machine:
    """The stack machine. `marks` holds the stacks below each open MARK, as in Python's own unpickler.

    `names`: "module attribute" -> what it stands for. `storage`: from a persistent id, untrusted, to what it stands for.
    """

    def __init__(self, names: Mapping[str, Name], storage: Callable[[object], Any]) -> None:
        self.names, self.storage = names, storage
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """What the pickle `data` describes; raises `Refused` on anything unknown, malformed or left over."""
        stream = io.BytesIO(data)
        result = self.run_next(stream)
        if stream.tell() != len(data):
            raise Refused("the pickle is malformed (something is left over at its end)")
        return result

    def run_next(self, stream: io.BytesIO) -> Any:
        """Execute the pickle at the position of `stream`, which is left behind its end."""
        try:
            for count, (code, argument, _) in enumerate(pickletools.genops(stream)):
                if count >= MOST_INSTRUCTIONS:
                    raise Refused(f"the pickle has more than {MOST_INSTRUCTIONS} instructions")
                if code.name == "STOP":
                    return self._stop()
                self._step(code.name, argument)
        except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
            raise Refused(f"the pickle is malformed ({shown(str(error))})") from None
        raise Refused("the pickle does not end")

    def _stop(self) -> Any:
        if len(self.stack) != 1 or self.marks:
            raise Refused("the pickle is malformed (something is left over at its end)")
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
            raise Refused("the pickle is malformed (stack empty)")
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
        if name not in self.names:
            raise Refused(f"it asks for {shown(name.replace(' ', '.', 1))}, which is not on the list of harmless names")
        self.stack.append(self.names[name])

    def look_up_pair(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Refused("a global whose name is not text")
        self.look_up(f"{module} {name}")

    def call(self, _: Any) -> None:
        """REDUCE and NEWOBJ: the call instructions of pickles, here only for functions of the table."""
        args, target = self.stack.pop(), self.stack.pop()
        if not isinstance(target, Name) or target.build is None or not isinstance(args, tuple):
            raise Refused(f"a call of a {type(target).__name__}")
        self.stack.append(target.build(args))

    def set_state(self, _: Any) -> None:
        """BUILD: for a `Stateful`; attributes of an OrderedDict (`_metadata`) are left out."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Stateful):
            target.set_state(state)
            return
        if not isinstance(target, dict):
            raise Refused(f"state of type {type(state).__name__} for a {type(target).__name__}")
        check_attributes(state)

    def load_storage(self, _: Any) -> None:
        self.stack.append(self.storage(self.stack.pop()))


_INSTRUCTIONS: dict[str, Callable[[Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": Machine.mark,
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "TUPLE": Machine.tuple_to_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.to_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(), machine.stack.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.to_mark()),
    "BINPUT": Machine.put,
    "LONG_BINPUT": Machine.put,
    "MEMOIZE": Machine.put,
    "BINGET": Machine.get,
    "LONG_BINGET": Machine.get,
    "GLOBAL": Machine.look_up,
    "STACK_GLOBAL": Machine.look_up_pair,
    "REDUCE": Machine.call,
    "NEWOBJ": Machine.call,
    "BUILD": Machine.set_state,
    "BINPERSID": Machine.load_storage,
}
