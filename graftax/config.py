"""Config files: `get_config()` plus `--config.key=value` overrides, checked into frozen dataclasses.

The dataclasses are the schema: a key they do not have, a value of another type and a value out of range are all refused
with one line that names the key. What a file leaves out keeps the dataclass's default.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import runpy
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from graftax.errors import BadInput, did_you_mean

T = TypeVar("T")

PACKAGE = Path(__file__).parent
FOLDER = "configs"
"""Of the configs that graftax brings."""


@dataclasses.dataclass(frozen=True)
class _Text:
    """A value from the command line, still to be read as what its field is."""

    text: str


def read(path: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Nested dict of the config file at `path` (None: empty) with `overrides` ("key.sub=value") put in.

    "configs/demo_graft.py" is the file of that name where the command is run, else the one that graftax brings (`shipped`).
    The file is Python and is run: it must define `get_config()` that returns an `ml_collections.ConfigDict` (or a
    dict). "configs/grafting.py:swa,75" runs get_config("swa,75"): one file for a family of experiments. Raises `BadInput`
    on a missing or broken file, an argument that it refuses, and an override without "=".
    """
    tree = {} if path is None else _run(*split_argument(str(path)))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise BadInput(f"override {override!r}: expected --config.key=value")
        _put(tree, key.split("."), _Text(text))
    return tree


def build(schema: type[T], tree: Mapping[str, Any], where: str = "config") -> T:
    """The dataclass `schema` with the fields of the nested dict `tree`. Raises `BadInput`, naming the key."""
    hints = typing.get_type_hints(schema)
    fields = {f.name: f for f in dataclasses.fields(schema) if f.init}  # pyright: ignore[reportArgumentType]
    for key in tree:
        if key not in fields:
            raise BadInput(
                f"{where}.{key}: unknown key, expected one of {', '.join(sorted(fields))}{did_you_mean(key, fields)}"
            )
    for name, field in fields.items():
        bare = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if bare and name not in tree:
            raise BadInput(f"{where}.{name}: missing, expected a value of type {_describe(hints[name])}")
    values = {key: convert(hints[key], value, f"{where}.{key}") for key, value in tree.items()}
    try:
        return schema(**values)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint` says: int, float, bool, str, one of some words, optional, tuple, dict of names or
    dataclass.

    Raises `BadInput`.
    """
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return _optional(hint, value, where)
    if dataclasses.is_dataclass(hint):
        tree = _literal(value) if isinstance(value, _Text) else value
        if not isinstance(tree, Mapping):
            raise BadInput(f"{where}: got {_show(value)}, expected keys of {hint.__name__}")  # pyright: ignore
        return build(hint, tree, where)  # pyright: ignore
    if typing.get_origin(hint) is tuple:
        return _tuple(hint, value, where)
    if typing.get_origin(hint) is typing.Literal:
        return _choice(hint, value, where)
    if typing.get_origin(hint) is dict:
        return _named(hint, value, where)
    return _scalar(hint, value, where)


def as_tree(config: Any) -> dict[str, Any]:
    """Plain JSON types of a config dataclass, for records and checkpoints."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(config).items()}


def changes(config: Any) -> dict[str, Any]:
    """The fields of a config dataclass that are not at their defaults, and those that have none: `build` makes the same of
    them."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.default is not dataclasses.MISSING:
            unchanged = value == field.default
        else:
            unchanged = field.default_factory is not dataclasses.MISSING and value == field.default_factory()
        if not unchanged:
            found[field.name] = changes(value) if dataclasses.is_dataclass(value) else value
    return found


def split_argument(name: str) -> tuple[Path, str | None]:
    """The file of a config's name, and what stands behind ".py:", None where nothing does."""
    file, colon, argument = name.partition(".py:")
    return (Path(f"{file}.py"), argument) if colon else (Path(name), None)


def shipped(name: str) -> Path:
    """The config "configs/NAME.py" that graftax brings: beside the package in a checkout, in it when installed."""
    inside = PACKAGE / name
    return inside if inside.exists() else PACKAGE.parent / name


def _find(path: Path) -> Path:
    """`path`, or the config of this name that graftax brings. Raises `BadInput` where there is neither."""
    if path.is_file():
        return path
    if path.parts[:-1] == (FOLDER,):
        if (own := shipped(str(path))).is_file():
            return own
        names = sorted(f"{FOLDER}/{file.name}" for file in shipped(FOLDER).glob("*.py"))
        near = did_you_mean(path, names)
        raise BadInput(f"config file {str(path)!r}: no such file here, nor among those that graftax brings{near}")
    raise BadInput(f"config file {str(path)!r}: no such file")


def _run(path: Path, argument: str | None) -> dict[str, Any]:
    path = _find(path)
    try:
        found = _execute(path)
        if "get_config" not in found:
            raise BadInput(f"config file {path}: no get_config(), expected one that returns a ConfigDict")
        get_config = found["get_config"]
        if argument is not None and not inspect.signature(get_config).parameters:
            raise BadInput(f"config file {path}: takes no argument, got {argument!r}")
        config = get_config() if argument is None else get_config(argument)
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(f"config file {path}: {error}") from None
    except Exception as error:
        raise BadInput(f"config file {path}: {type(error).__name__}: {error}") from error
    tree = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(tree, dict):
        raise BadInput(f"config file {path}: get_config() returned {type(config).__name__}, expected a ConfigDict")
    return tree


def _execute(path: Path) -> dict[str, Any]:
    """The globals of a Python file that was run. It may import the files beside it by name, and they stay its own: another
    folder's config gets its own `common`."""
    folder, known = str(path.resolve().parent), set(sys.modules)
    sys.path.insert(0, folder)
    try:
        return runpy.run_path(str(path))
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(folder + os.sep):
                del sys.modules[name]


def _put(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    *parents, last = keys
    for key in parents:
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            raise BadInput(f"override {'.'.join(keys)}: {key!r} is {_show(below)}, which has no keys")
        tree = below
    tree[last] = value


def _literal(value: _Text) -> Any:
    text = value.text.capitalize() if value.text in ("true", "false", "none") else value.text
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return value.text


def _optional(hint: Any, value: Any, where: str) -> Any:
    inner = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    bare = _literal(value) if isinstance(value, _Text) else value
    return None if bare is None else convert(inner[0], value, where)


def _tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    kinds = typing.get_args(hint)
    if isinstance(value, _Text):
        value = _literal(value)
    if isinstance(value, str | int | float):
        value = (value,)  # one selector, label or number is a list of one
    if not isinstance(value, list | tuple):
        raise BadInput(f"{where}: got {_show(value)}, expected {_describe(hint)}")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise BadInput(f"{where}: got {len(value)} values, expected {len(kinds)}")
    return tuple(convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _named(hint: Any, value: Any, where: str) -> dict[str, Any]:
    tree = _literal(value) if isinstance(value, _Text) else value
    if not isinstance(tree, Mapping):
        raise BadInput(f"{where}: got {_show(value)}, expected names with values")
    return {name: convert(typing.get_args(hint)[1], item, f"{where}[{name!r}]") for name, item in tree.items()}


def _choice(hint: Any, given: Any, where: str) -> Any:
    value, choices = given.text if isinstance(given, _Text) else given, typing.get_args(hint)
    if value not in choices:
        raise BadInput(f"{where}: got {_show(given)}, expected one of {choices}{did_you_mean(value, choices)}")
    return value


def _scalar(hint: Any, given: Any, where: str) -> Any:
    value = given
    if isinstance(given, _Text):
        value = given.text if hint is str else _literal(given)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e5 steps
    if type(value) is not hint:
        raise BadInput(f"{where}: got {_show(given)}, expected {_describe(hint)}")
    return value


def _show(value: Any) -> str:
    return repr(value.text if isinstance(value, _Text) else value)


def _describe(hint: Any) -> str:
    return {int: "an integer", float: "a number", bool: "true or false", str: "text"}.get(hint) or str(
        getattr(hint, "__name__", hint) if not typing.get_args(hint) else hint
    )
