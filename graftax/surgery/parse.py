"""From the text of an edit to the edit: `parse(str(edit)) == edit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graftax.errors import BadInput, did_you_mean
from graftax.spec import OpSpec
from graftax.surgery.class_tokens import class_tokens
from graftax.surgery.decouple import decouple
from graftax.surgery.edits import Edit, compose
from graftax.surgery.grammar import Call, Pair, read
from graftax.surgery.hybrid import hybrid
from graftax.surgery.interface import interface, native
from graftax.surgery.inverse import inverse
from graftax.surgery.lora import lora, merge_lora
from graftax.surgery.lora_file import lora_file
from graftax.surgery.patch import patch
from graftax.surgery.place_norms import place_norms
from graftax.surgery.program import parallel, random_order, repeat, reverse, skip
from graftax.surgery.replace import replace, resize
from graftax.surgery.restructure import drop, parallel_pairs, tie
from graftax.surgery.rotary import rotary

EDITS: dict[str, Callable[..., Edit]] = {
    "replace": replace, "resize": resize, "hybrid": hybrid, "compose": compose, "inverse": inverse, "lora": lora,
    "lora_file": lora_file, "merge_lora": merge_lora, "skip": skip, "repeat": repeat, "reverse": reverse,
    "random_order": random_order, "parallel": parallel, "parallel_pairs": parallel_pairs, "drop": drop, "tie": tie,
    "interface": interface, "native": native, "place_norms": place_norms, "rotary": rotary, "class_tokens": class_tokens,
    "patch": patch, "decouple": decouple,
}  # fmt: skip
"""The functions that make edits, by the names they have in texts. To add one: write it, name it here."""


def parse(text: str) -> Edit:
    """The edit that `text` describes, in the language of `graftax.surgery.grammar`.

    Raises `BadInput` on malformed text, unknown edits and operators, and what the edit's own function refuses.
    """
    found = read(text)
    if isinstance(found, Pair):
        return _short(text, found)
    return _edit(text, found)


def parse_operator(text: str) -> OpSpec:
    """The operator that `text` describes, "swa" or "swa(window=8)". Raises `BadInput` on malformed text."""
    found = read(text if "(" in text else f"{text}()")
    if isinstance(found, Pair):
        raise BadInput(f"operator {text!r}: expected one like swa(window=8)")
    return _operator(text, found)


def _short(text: str, pair: Pair) -> Edit:
    """SELECTOR=OPERATOR and SELECTOR=RATIO."""
    if isinstance(pair.value, int | float) and not isinstance(pair.value, bool):
        return resize(pair.key, pair.value)
    if isinstance(pair.value, str):
        return replace(pair.key, OpSpec(pair.value))
    if isinstance(pair.value, Call):
        return replace(pair.key, _operator(text, pair.value))
    raise BadInput(f"edit {text!r}: got {pair.value!r} behind '=', expected an operator or a ratio")


def _edit(text: str, call: Call) -> Edit:
    make = EDITS.get(call.name)
    if make is None:
        raise BadInput(
            f"edit {text!r}: {call.name!r} is no edit, expected one of {', '.join(EDITS)}{did_you_mean(call.name, EDITS)}"
        )
    try:
        return make(
            *(_value(text, value) for value in call.arguments),
            **{name: _value(text, value) for name, value in call.keywords},
        )
    except TypeError as error:
        raise BadInput(f"edit {text!r}: {error}") from None


def _value(text: str, value: Any) -> Any:
    if isinstance(value, Call):
        return _edit(text, value) if value.name in EDITS else _operator(text, value)
    if isinstance(value, Pair):
        return Pair(_value(text, value.key), _value(text, value.value))
    if isinstance(value, list | tuple):
        return type(value)(_value(text, item) for item in value)
    return value


def _operator(text: str, call: Call) -> OpSpec:
    if call.arguments:
        raise BadInput(f"edit {text!r}: {call.name}({call.arguments[0]!r}, ..), expected options as name=value")
    return OpSpec(call.name, call.keywords)
