"""Foreign file formats: what a `Layout` is, and how its tensors become a parameter tree and back.

A backbone's `LAYOUTS` lists the formats of its family; opening a file is asking all of them (`graftax.checkpoint.opening`).
Nothing is computed with tensors here: leaves are views of what was read, or `Joined` of several such.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from graftax.errors import BadInput
from graftax.models.joined import Joined
from graftax.models.network import param_shapes
from graftax.ops.base import Params, TorchKey
from graftax.spec import ModelSpec, Option

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Config = Mapping[str, Any]
T = TypeVar("T")
NAMED_AT_MOST = 5
_AXES = {"linear": (1, 0), "patch": (2, 3, 1, 0)}  # (out, in) -> (in, out); (d, c, p, p) -> (p, p, c, d)


@dataclass(frozen=True)
class Key:
    """Where one leaf stands in a foreign file.

    Attributes:
        leaf: our path, "blocks/07/mixer/qkv/kernel".
        names: the tensors that hold it.
        turn: from theirs to ours, as `TorchKey.layout`.
        join: of several tensors, "rows": one below the other, "copies": all the same.
        part: (axis, start, stop) of the one tensor, in its own order of axes, where other leaves hold the rest of it.
        swap: whether the halves of its rows stand in the other order there, as in diffusers' last modulations.
    """

    leaf: str
    names: tuple[str, ...]
    turn: str = "same"
    join: str = "rows"
    part: tuple[int, int, int] | None = None
    swap: bool = False

    @classmethod
    def of(cls, key: TorchKey, ours: str = "", theirs: str = "") -> Key:
        """An operator's key, with what stands before it on either side."""
        return cls(ours + key.leaf, (theirs + key.name,), key.layout)


class Layout(ABC):
    """A foreign file format.

    Attributes:
        name: what `graftax.load(layout=)` calls it.
        folder: names that the weights may have in a folder with a `config.json`, best first; () where the format is
            one file.
        classes: names of the class in that `config.json`.
        pipelines: names of the classes of pipelines that such a folder is the transformer of.
        entry: of a PyTorch checkpoint, under which its family looks for the tensors; "" where they are all that it holds.
        prefix: what the family's files put before the names of its tensors, as other networks' may stand beside them. It is
            no part of the names that the methods below give and take.
        beside: how the names of tensors begin that the family's files have beside the model's own: heads of a training loss,
            say. They are left out in reading (`graftax.checkpoint.read_beside` gives them), and so not written.
    """

    name: ClassVar[str]
    folder: ClassVar[tuple[str, ...]] = ()
    classes: ClassVar[tuple[str, ...]] = ()
    pipelines: ClassVar[tuple[str, ...]] = ()
    entry: ClassVar[str] = ""
    prefix: ClassVar[str] = ""
    beside: ClassVar[tuple[str, ...]] = ()

    def own(self, tensors: Mapping[str, T]) -> Mapping[str, T]:
        """The model's tensors in a file, or their shapes, without `prefix`: those alone that have it, if there are any, else
        all."""
        return self.parted(tensors)[0]

    def parted(self, tensors: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
        """The model's tensors (`own`), and those `beside` it."""
        own = {name.removeprefix(self.prefix): one for name, one in tensors.items() if name.startswith(self.prefix)}
        own = own or dict(tensors)
        others = {name: own.pop(name) for name in [*own] if name.startswith(self.beside)}
        return own, others

    @abstractmethod
    def fits(self, shapes: Shapes, config: Config) -> bool:
        """Whether tensors of these names and shapes, and the `config.json` beside them ({} without one), are of it."""

    @abstractmethod
    def spec(self, shapes: Shapes, config: Config, overrides: Mapping[str, Option]) -> ModelSpec:
        """What the model is. `overrides` give what the file does not say; those that it contradicts are refused.

        Raises `BadInput`, naming tensors and settings.
        """

    @abstractmethod
    def keys(self, spec: ModelSpec) -> Sequence[Key]:
        """The place of every leaf, but of those that `computed` gives."""

    @abstractmethod
    def check(self, spec: ModelSpec) -> None:
        """Raise `BadInput` where the format cannot hold a model."""

    def computed(self, spec: ModelSpec) -> Params:
        """Leaves by path that are in no file, since everybody computes them."""
        return {}

    def unheld(self, spec: ModelSpec) -> tuple[str, ...]:
        """Leaves by path that the format has no place for, and that its code has no use for either."""
        return ()

    def unread(self, spec: ModelSpec) -> tuple[str, ...]:
        """Names of tensors that a file may have and that nothing is read from, since everybody computes them."""
        return ()

    def constants(self, spec: ModelSpec) -> dict[str, np.ndarray]:
        """Tensors of a file that follow from the spec: written, and looked at, but nothing is read from them."""
        return {}

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        """The `config.json` of a folder."""
        return {}

    def vet(self, path: Path, spec: ModelSpec) -> None:  # noqa: B027 -- most formats say nothing that could be wrong
        """Raise `BadInput` where a file is not what its name says."""


def tensor_shapes(layout: Layout, spec: ModelSpec) -> dict[str, Shape]:
    """The shape of every tensor in a file of `layout`."""
    ours: dict[str, Any] = flatten_dict(param_shapes(spec), sep="/")
    keys = layout.keys(spec)
    for key in keys:
        if key.leaf not in ours:
            raise BadInput(f"layout {layout.name!r}: {key.leaf} is no parameter of this model")
    return shapes_of_keys(keys, ours)


def shapes_of_keys(keys: Sequence[Key], ours: Mapping[str, Any]) -> dict[str, Shape]:
    """The shapes of the tensors that `keys` name, from our leaves (arrays or shapes) by path."""
    found: dict[str, Shape] = {}
    for key in keys:
        rows, *rest = _shape_of(_to_theirs, key.turn, ours[key.leaf].shape)
        parts = len(key.names) if key.join == "rows" else 1
        shape = (rows // parts, *rest)
        if key.part:  # as far as this leaf's end; those that follow it reach further
            axis, _, stop = key.part
            shape = tuple(stop if i == axis else size for i, size in enumerate(shape))
        found |= {name: tuple(map(max, found.get(name, shape), shape)) for name in key.names}
    return found


def params_from(layout: Layout, spec: ModelSpec, tensors: Mapping[str, np.ndarray]) -> Params:
    """The parameter tree of `spec` from the tensors of a file, in the types that they are stored in.

    A leaf of one tensor is a view of it, one of several a `Joined` of views: nothing is copied. Raises `BadInput` naming
    every missing, unexpected, mis-shaped or non-float tensor (five of them, then a count), and copies that differ.
    """
    expected, unread = tensor_shapes(layout, spec), layout.unread(spec)
    tensors = {name: array for name, array in layout.own(tensors).items() if name not in unread}
    constants = {name: array for name, array in layout.constants(spec).items() if name in tensors}
    others = [name for name, array in constants.items() if not _near(tensors[name], array)]
    refuse("tables that are not those that everybody computes", others)
    tensors = {name: array for name, array in tensors.items() if name not in constants}
    refuse("tensors missing", [name for name in expected if name not in tensors])
    refuse("tensors unexpected", [name for name in tensors if name not in expected])
    differ = {name: shape for name, shape in expected.items() if tensors[name].shape != shape}
    wrong = [f"{name} {tensors[name].shape} (expected {shape})" for name, shape in differ.items()]
    refuse("tensors mis-shaped", wrong)
    ill_typed = [f"{name} {array.dtype}" for name, array in tensors.items() if not jnp.issubdtype(array.dtype, jnp.floating)]
    refuse("tensors of no float type", ill_typed)
    leaves = {key.leaf: _leaf(key, tensors) for key in layout.keys(spec)}
    return unflatten_dict({**leaves, **layout.computed(spec)}, sep="/")


def tensors_from(layout: Layout, spec: ModelSpec, params: Params) -> dict[str, np.ndarray]:
    """The tensors of a file from a parameter tree: inverse of `params_from`, bit for bit.

    Raises `BadInput` where the layout cannot hold the model or `params` does not fit `spec`.
    """
    layout.check(spec)
    unheld, leaves = layout.unheld(spec), flatten_dict(dict(params), sep="/")
    flat: dict[str, Any] = {path: leaf for path, leaf in leaves.items() if path not in unheld}
    keys, fixed = layout.keys(spec), layout.computed(spec)
    ours = {key.leaf for key in keys} | fixed.keys()
    refuse("parameters missing", sorted(ours - flat.keys()))
    refuse(f"parameters without a name in the layout {layout.name!r}", sorted(flat.keys() - ours))
    expected: dict[str, Any] = flatten_dict(param_shapes(spec), sep="/")
    differ = [path for path in ours if flat[path].shape != expected[path].shape]
    wrong = [f"{path} {flat[path].shape} (expected {expected[path].shape})" for path in differ]
    refuse("parameters mis-shaped", wrong)
    others = [path for path, leaf in fixed.items() if not _alike(np.asarray(flat[path]), leaf)]
    refuse(f"the layout {layout.name!r} holds no table, and not the one that everybody computes", others)
    shapes, found = tensor_shapes(layout, spec), dict[str, np.ndarray]()
    for key in keys:
        tensor = _swapped(key, _to_theirs(key.turn, np.asarray(flat[key.leaf])))
        if key.part:
            whole = found.setdefault(key.names[0], np.empty(shapes[key.names[0]], tensor.dtype))
            whole[_span(key.part)] = tensor
            continue
        copied = key.join == "copies" or len(key.names) == 1
        pieces = [tensor] * len(key.names) if copied else np.split(tensor, len(key.names))
        found.update(zip(key.names, pieces, strict=True))
    return {layout.prefix + name: tensor for name, tensor in (layout.constants(spec) | found).items()}


def to_ours(turn: str, array: np.ndarray) -> np.ndarray:
    """A tensor in our order of axes, a view; `turn` as `TorchKey.layout`."""
    if turn == "conv":
        return array[:, 0, :].T  # (c, 1, K) -> (K, c)
    return array.transpose(_AXES[turn]) if turn in _AXES else array


def refuse(what: str, names: Sequence[str], also: Sequence[str] = ()) -> None:
    """Raise `BadInput` listing `names`, if there are any, and `also` unexpected ones."""
    if names:
        rest = f"; unexpected: {listing(also)}" if also else ""
        raise BadInput(f"{what}: {listing(names)}{rest}")


def listing(names: Sequence[str]) -> str:
    """The first few names, then a count."""
    left = len(names) - NAMED_AT_MOST
    return ", ".join(ascii(name)[1:-1] for name in names[:NAMED_AT_MOST]) + (f" and {left} more" if left > 0 else "")


def _span(part: tuple[int, int, int]) -> tuple[slice, ...]:
    axis, start, stop = part
    return (*[slice(None)] * axis, slice(start, stop))


def _swapped(key: Key, tensor: np.ndarray) -> np.ndarray:
    """A tensor with the halves of its rows exchanged, where `key` says so."""
    return np.concatenate(np.split(tensor, 2)[::-1]) if key.swap else tensor


def _leaf(key: Key, tensors: Mapping[str, np.ndarray]) -> np.ndarray | Joined:
    pieces = [to_ours(key.turn, piece) for piece in _pieces(key, tensors)]
    # Their rows are our first axis where axes keep their order, else the last: (out, in) -> (in, out).
    return pieces[0] if len(pieces) == 1 else Joined(pieces, 0 if key.turn == "same" else pieces[0].ndim - 1)


def _pieces(key: Key, tensors: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Views of tensors whose rows, one below the other, are the leaf in their order of axes."""
    first = tensors[key.names[0]]
    if len(key.names) == 1:
        own = first[_span(key.part)] if key.part else first
        return np.split(own, 2)[::-1] if key.swap else [own]
    if key.join == "rows":
        return [tensors[name] for name in key.names]
    for name in key.names[1:]:
        if not np.array_equal(tensors[name], first):
            raise BadInput(f"{name} differs from {key.names[0]}: expected copies of one tensor")
    return [first]


def _alike(leaf: np.ndarray, computed: np.ndarray) -> bool:
    """Whether a leaf is the computed one, to the precision of a type that it may have been saved in."""
    saved = (computed.astype(kind).astype(np.float32) for kind in (leaf.dtype, np.float16, jnp.bfloat16))
    return any(np.allclose(leaf.astype(np.float32), rounded, rtol=0, atol=1e-5) for rounded in saved)


def _near(tensor: np.ndarray, computed: np.ndarray) -> bool:
    """Whether a tensor of numbers up to 1 is the computed one, to the precision of its type."""
    atol = 1e-4 if tensor.dtype.itemsize >= 4 else 1e-2
    return tensor.shape == computed.shape and np.allclose(tensor.astype(np.float32), computed, rtol=0, atol=atol)


def _to_theirs(turn: str, array: np.ndarray) -> np.ndarray:
    if turn == "conv":
        return array.T[:, None, :]  # (K, c) -> (c, 1, K)
    return array.transpose(np.argsort(_AXES[turn])) if turn in _AXES else array


def _shape_of(turner: Callable[[str, np.ndarray], np.ndarray], turn: str, shape: Shape) -> Shape:
    """The shape that `turner` gives to an array of `shape`."""
    return turner(turn, np.broadcast_to(np.float32(0), shape)).shape
