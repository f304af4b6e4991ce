"""The language of edits: one grammar for provenance, configs and the command line.

    replace(blocks[1::2].mixer, hyena_x(kernel=4), init=random)
    hybrid(hyena_x(kernel=4): blocks[1,3,5].mixer, mlp(ratio=3.0): [blocks[0].mlp, blocks[4].mlp])
    compose(drop(3, 5), tie((7, 8)))
    blocks[1::2].mixer=hyena_x(kernel=4)              short for replace(...)
    blocks[*].mlp=3                                   short for resize(...)

An edit is a call: a name and arguments in brackets, some of them by name. A value is a number, `true`, `false`, `none`, a
word or a path of words (`final/linear`), a selector, a "quoted text", a list [..], a tuple (..), or a call again, of an
operator or of an edit. `parse(str(edit))` equals the edit, for every edit.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from graftax.errors import BadInput
from graftax.spec import OpSpec
from graftax.surgery.select import SHAPE

DEEPEST, SHOWN = 50, 200
"""How deeply brackets may be nested; how much of a text an error message shows."""

EXAMPLE = "replace(blocks[1::2].mixer, hyena_x(kernel=4))"
_SELECTOR = re.sub(r"\?P<\w+>", "?:", SHAPE.pattern)
_TOKEN = re.compile(
    r"(?P<selector>" + _SELECTOR + r")"
    r"|(?P<number>-?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)(?![\w.]))"
    r"|(?P<word>[A-Za-z_]\w*(?:/\w+)*)"
    r"|(?P<quoted>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')"
    r"|(?P<mark>[()\[\],=:])"
)
_WORDS = {"true": True, "True": True, "false": False, "False": False, "none": None, "None": None}


@dataclass(frozen=True)
class Call:
    """A call as it was read: `name(arguments, keyword=argument)`; a pair `a: b` among the arguments is a `Pair`."""

    name: str
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Pair:
    """`key: value` among the arguments of a call."""

    key: Any
    value: Any


def read(text: str, what: str = "edit", example: str = EXAMPLE) -> Call | Pair:
    """The call that `text` is; for the short form SELECTOR=VALUE a `Pair`. Raises `BadInput` where it is neither, which
    says `what` was expected, and an `example`."""
    reader = _Reader(text, what, example)
    value = reader.value()
    if isinstance(value, str) and reader.take("="):
        value = Pair(value, reader.value())
    if reader.left:
        reader.refuse(f"more than one {what}")
    if not isinstance(value, Call | Pair):
        reader.refuse("no call")
    return value


def call_text(name: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> str:
    """A call in the language above."""
    parts = [*map(value_text, arguments), *(f"{key}={value_text(value)}" for key, value in keywords.items())]
    return f"{name}({', '.join(parts)})"


def value_text(value: Any) -> str:
    """A value in the language above: what `read` gives back."""
    if isinstance(value, OpSpec):
        return call_text(value.kind, (), dict(value.options))
    if isinstance(value, Pair):
        return f"{value_text(value.key)}: {value_text(value.value)}"
    if isinstance(value, list | tuple):
        brackets = "[]" if isinstance(value, list) else "()"
        inside = ", ".join(map(value_text, value))
        return f"{brackets[0]}{inside}{',' if brackets == '()' and len(value) == 1 else ''}{brackets[1]}"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        plain = SHAPE.fullmatch(value) or (re.fullmatch(r"[A-Za-z_]\w*(?:/\w+)*", value) and value not in _WORDS)
        return value if plain else repr(value)
    return str(value)  # an edit


class _Reader:
    """Reads values from left to right."""

    def __init__(self, text: str, what: str, example: str) -> None:
        if not isinstance(text, str):
            raise BadInput(f"{what} {text!r}: expected text like {example}")
        self._text, self._at, self._what, self._example = text, 0, what, example
        self._tokens: list[tuple[str, str]] = []
        rest = text.strip()
        while rest:
            match = _TOKEN.match(rest)
            if match is None:
                self.refuse(f"{rest[:20]!r} is not understood")
            self._tokens.append((match.lastgroup or "", match[match.lastgroup or 0]))
            rest = rest[match.end() :].lstrip()
        marks = [token for kind, token in self._tokens if kind == "mark"]
        if max(itertools.accumulate((mark in "([") - (mark in ")]") for mark in marks), default=0) > DEEPEST:
            self.refuse("nested too deeply")

    @property
    def left(self) -> bool:
        """Whether there is more to read."""
        return self._at < len(self._tokens)

    def refuse(self, reason: str) -> NoReturn:
        """Raise `BadInput` naming the text."""
        raise BadInput(f"{self._what} {self._text[:SHOWN]!r}: {reason}; expected something like {self._example}")

    def take(self, mark: str) -> bool:
        """Whether the next token is this mark, which is then read."""
        found = self.left and self._tokens[self._at] == ("mark", mark)
        self._at += found
        return found

    def value(self) -> Any:
        """The next value."""
        if not self.left:
            self.refuse("it ends too early")
        kind, token = self._tokens[self._at]
        self._at += 1
        if kind == "selector":
            return token
        if kind in ("number", "quoted"):
            return ast.literal_eval(token)
        if kind == "word":
            return self._call(token) if self.take("(") else _WORDS.get(token, token)
        if token in "([":
            return self._several(")" if token == "(" else "]")
        return self.refuse(f"{token!r} is out of place")

    def _several(self, end: str) -> Any:
        """A list up to "]", or a tuple up to ")"."""
        found: list[Any] = []
        while not self.take(end):
            found.append(self.value())
            if not self.take(",") and not self._next_is(end):
                self.refuse(f"a list that does not end in {end!r}")
        return found if end == "]" else tuple(found)

    def _call(self, name: str) -> Call:
        arguments: list[Any] = []
        keywords: dict[str, Any] = {}
        while not self.take(")"):
            value = self.value()
            if isinstance(value, str) and self.take("="):
                if value in keywords:
                    self.refuse(f"{value} is given twice")
                keywords[value] = self.value()
            elif self.take(":"):
                arguments.append(Pair(value, self.value()))
            else:
                arguments.append(value)
            if not self.take(",") and not self._next_is(")"):
                self.refuse("brackets that do not close")
        return Call(name, tuple(arguments), tuple(keywords.items()))

    def _next_is(self, mark: str) -> bool:
        return self.left and self._tokens[self._at] == ("mark", mark)
