"""Low-rank changes of the layers of a foreign format as changes of our kernels, and back.

What a `Layout` says of weights holds for their changes up @ down as well: where a kernel is several layers, one below
the other, or some of a layer's rows, `up` is padded or cut; where it is some of a layer's columns, `down` is. Changes that
meet in one matrix stand side by side, so that their ranks add up: [up_1 up_2] @ [down_1; down_2]. Where they have a side in
common they share it: queries, keys and values of one `down` are one change of its rank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from graftax.errors import BadInput
from graftax.models.layout import Key, Layout, Shape, shapes_of_keys
from graftax.models.network import param_shapes
from graftax.spec import ModelSpec

WEIGHT = ".weight"


@dataclass(frozen=True)
class LowRank:
    """The change up @ down of a weight (out, in).

    Attributes:
        down: (rank, in).
        up: (out, rank).
    """

    down: np.ndarray
    up: np.ndarray

    @property
    def rank(self) -> int:
        """Rows of `down`, columns of `up`."""
        return len(self.down)


@dataclass(frozen=True)
class Layers:
    """The linear layers of a model by the names that a format has for them.

    Attributes:
        keys: of every layer the kernels that it holds, or that hold it.
        shapes: of every layer's weight, (out, in).
    """

    keys: Mapping[str, Sequence[Key]]
    shapes: Mapping[str, Shape]


def layers_of(layout: Layout, spec: ModelSpec) -> Layers:
    """The linear layers that the model has whole; where a part of one was exchanged for another operator it is none."""
    leaves: dict[str, Any] = flatten_dict(param_shapes(spec), sep="/")
    linear = [key for key in layout.keys(spec) if key.turn == "linear" and key.leaf.endswith("/kernel")]
    lost = {name for key in linear for name in key.names if key.leaf not in leaves}
    kept = [key for key in linear if lost.isdisjoint(key.names)]
    keys: dict[str, list[Key]] = defaultdict(list)
    for key in kept:
        for name in key.names:
            keys[name.removesuffix(WEIGHT)].append(key)
    shapes = shapes_of_keys(kept, leaves)
    return Layers(keys, {name.removesuffix(WEIGHT): shape for name, shape in shapes.items()})


def to_kernels(layers: Layers, changes: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Changes of layers by name -> changes of the kernels they hold, by path; a kernel's are those of its transpose.

    Raises `BadInput` where the layers are copies of one kernel and their changes differ.
    """
    found: dict[str, list[LowRank]] = defaultdict(list)
    for layer, change in changes.items():
        for key in layers.keys[layer]:
            if key.join == "copies" and not _first_of_equals(key, layer, changes):
                continue
            found[key.leaf].append(_to_kernel(key, layer, change))
    return _sums(found)


def to_layers(layers: Layers, changes: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Inverse of `to_kernels`.

    Raises `BadInput` naming a kernel that the format has no layer for.
    """
    named = {key.leaf for keys in layers.keys.values() for key in keys}
    if others := sorted(changes.keys() - named):
        raise BadInput(f"adapter on {others[0]}: no layer of that format, expected other targets or merge_lora()")
    return _sums({
        layer: [_to_layer(key, layer, changes[key.leaf], layers.shapes[layer]) for key in keys if key.leaf in changes]
        for layer, keys in layers.keys.items()
    })  # fmt: skip


def _first_of_equals(key: Key, layer: str, changes: Mapping[str, LowRank]) -> bool:
    """Whether `layer` stands for all copies of one kernel, which must all be changed alike."""
    first, *others = (name.removesuffix(WEIGHT) for name in key.names)
    for other in others:
        if not (first in changes and other in changes and _equal(changes[first], changes[other])):
            raise BadInput(f"{layer}: one of {len(key.names)} copies of a layer, expected the same change of all")
    return layer == first


def _equal(one: LowRank, other: LowRank) -> bool:
    return np.array_equal(one.down, other.down) and np.array_equal(one.up, other.up)


def _to_kernel(key: Key, layer: str, change: LowRank) -> LowRank:
    down, up = change.down, change.up
    if key.part:
        axis, start, stop = key.part
        down, up = (down, up[start:stop]) if axis == 0 else (down[:, start:stop], up)
    down, up = _useful(down, _swapped(key, up), change)
    if _is_joined(key):
        at, rows = key.names.index(layer + WEIGHT), len(up)
        up = _padded(up, 0, at * rows, len(key.names) * rows)  # (rows, rank) -> (parts * rows, rank)
    return LowRank(down, up)


def _to_layer(key: Key, layer: str, change: LowRank, shape: Shape) -> LowRank:
    down, up = change.down, _swapped(key, change.up)
    if _is_joined(key):
        up = np.split(up, len(key.names))[key.names.index(layer + WEIGHT)]
    down, up = _useful(down, up, change)
    if key.part:
        axis, start, _ = key.part
        whole = shape[axis]
        down, up = (down, _padded(up, 0, start, whole)) if axis == 0 else (_padded(down, 1, start, whole), up)
    return LowRank(down, up)


def _useful(down: np.ndarray, up: np.ndarray, change: LowRank) -> tuple[np.ndarray, np.ndarray]:
    """A part of a change without what does nothing in it. Fresh adapters, which do nothing anywhere, are kept."""
    used = down.any(axis=1) & (up.any(axis=0) | (not change.up.any()))
    return down[used], up[:, used]


def _is_joined(key: Key) -> bool:
    return len(key.names) > 1 and key.join == "rows"


def _swapped(key: Key, up: np.ndarray) -> np.ndarray:
    return np.concatenate(np.split(up, 2)[::-1]) if key.swap else up


def _padded(array: np.ndarray, axis: int, start: int, whole: int) -> np.ndarray:
    """`array` at `start` of an axis of `whole`, zeros elsewhere."""
    edges = [(0, 0), (0, 0)]
    edges[axis] = (start, whole - start - array.shape[axis])
    return np.pad(array, edges)


def _sums(changes: Mapping[str, Iterable[LowRank]]) -> dict[str, LowRank]:
    """The sum of each name's changes; names without any, or with such of rank 0 alone, are left out."""
    ranked = {name: [one for one in changes[name] if one.rank] for name in sorted(changes)}
    return {name: _sum(several) for name, several in ranked.items() if several}


def _sum(changes: Iterable[LowRank]) -> LowRank:
    """The sum of changes, of as small a rank as their common sides allow."""
    found: list[LowRank] = []
    for change in changes:
        for i, other in enumerate(found):
            if np.array_equal(other.down, change.down):
                found[i] = LowRank(other.down, other.up + change.up)
                break
            if np.array_equal(other.up, change.up):
                found[i] = LowRank(other.down + change.down, other.up)
                break
        else:
            found.append(change)
    return LowRank(np.concatenate([one.down for one in found]), np.concatenate([one.up for one in found], axis=1))
