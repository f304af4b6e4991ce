"""What file formats of all families share: operators in blocks under prefixes, each recognised by its own tensors.

Every operator brings its own keys and tells whether a set of tensors is its own (`graftax.ops.base.Operator`); a family says
where in a block its slots' tensors stand, `prefix`: slot -> how their names begin.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from flax.traverse_util import flatten_dict

from graftax import ops
from graftax.blocks import slot_of
from graftax.errors import BadInput
from graftax.models.layout import Key, Layout, Shape, Shapes, listing, refuse, tensor_shapes
from graftax.ops.base import Operator, TorchKey, shapes_of
from graftax.spec import BlockSpec, ModelSpec, OpSpec, Option, Sizes, sequential

Prefix = Mapping[str, str]
Slots = dict[str, dict[str, Shape]]
"""Slot -> shapes by name within the slot."""

_RANK = {"linear": 2, "conv": 3, "patch": 4}
BLOCK = re.compile(r"blocks\.(0|[1-9][0-9]{0,3})\.(.+)")
"""A tensor of a block: its number, its name within."""


# --- Keys --------------------------------------------------------------------------------------------------------------


def block_keys(spec: ModelSpec, prefix: Prefix) -> list[Key]:
    """The place of every leaf in the blocks."""
    found = []
    for i, block in enumerate(spec.blocks):
        for slot, start in prefix.items():
            ours, theirs = f"blocks/{spec.block_key(i)}/{slot}/", f"blocks.{i}.{start}"
            found += [Key.of(key, ours, theirs) for key in _torch_keys(spec, block.kind, slot, block[slot])]
    return found


@functools.lru_cache(maxsize=256)
def _torch_keys(spec: ModelSpec, kind: str, slot: str, op: OpSpec) -> tuple[TorchKey, ...]:
    """The keys of the leaves that an operator has. Raises `BadInput` where it has not named them all."""
    operator = slot_of(kind, slot).build(op, spec.sizes)
    leaves = {key.leaf for key in operator.torch_keys}
    present = set(flatten_dict(shapes_of(operator), sep="/"))
    if not present <= leaves:
        raise BadInput(f"operator {op}: has no complete table of PyTorch names")
    return tuple(key for key in operator.torch_keys if key.leaf in present)


def check_plain_program(spec: ModelSpec, kind: str, files: str) -> None:
    """Raise `BadInput` where a model's blocks are not all of one kind, run in order and without adapters."""
    if others := sorted({block.kind for block in spec.blocks} - {kind}):
        raise BadInput(f"export: blocks of the kind {others[0]!r}, but {files} files hold {kind!r} alone; save a folder")
    if spec.program != sequential(spec.depth):
        raise BadInput("export: PyTorch files hold no program, and this is not 0..L-1 in order; save a graftax folder")
    if spec.adapters:
        raise BadInput(
            f"export: PyTorch files hold no adapters, and this model has {len(spec.adapters)}; merge_lora() first"
        )


# --- What tensors say ----------------------------------------------------------------------------------------------------


def by_slot(
    shapes: Shapes, prefix: Prefix, stem: Collection[str], modulation: Sequence[str], more: tuple[str, ...] = ()
) -> list[Slots]:
    """Per block: slot -> shapes by name within the slot. Refuses missing and unexpected names outside the slots.

    `stem`: names outside the blocks, all needed, and others may begin with one of `more`; `modulation`: the names that are
    called missing where a block's slot "adaln" has no tensors at all.
    """
    found: dict[int, Slots] = defaultdict(lambda: {slot: {} for slot in prefix})
    unexpected = []
    for name, shape in shapes.items():
        match = BLOCK.fullmatch(name)
        slot = match and next((s for s, start in prefix.items() if match[2].startswith(start)), None)
        if match and slot:
            found[int(match[1])][slot][match[2].removeprefix(prefix[slot])] = shape
        elif name not in stem and not name.startswith(more):
            unexpected.append(name)
    depth = 1 + max(found, default=0)
    bare = [i for i in range(depth) if not found[i]["adaln"]]
    needed = [*stem, *(f"blocks.{i}.{prefix['adaln']}{name}" for i in bare for name in modulation)]
    refuse("tensors missing", [name for name in needed if name not in shapes], unexpected)
    refuse("tensors unexpected", unexpected)
    return [found[i] for i in range(depth)]


def width_of(shapes: Shapes, names: Sequence[str]) -> int:
    """The width that most of these tensors agree on, so that one wrong tensor is the one that gets named later."""
    found = [shapes[name][-1] for name in names if shapes[name]]
    return Counter(found or [0]).most_common(1)[0][0]


def patches_of(shapes: Shapes) -> tuple[int, int, bool]:
    """Patch size, channels, and whether the variance is learned."""
    weight, rows = shapes["x_embedder.proj.weight"], shapes["final_layer.linear.weight"][:1]
    if len(weight) == 4 and weight[2] == weight[3] and min(weight) > 0:
        numbers = weight[1] * weight[2] * weight[3]
        if rows in ((numbers,), (2 * numbers,)):
            return weight[2], weight[1], rows == (2 * numbers,)
    raise BadInput(
        f"x_embedder.proj.weight {weight} and final_layer.linear.weight {shapes['final_layer.linear.weight']}: "
        "expected (d, c, p, p) and (p * p * c, d) or (2 * p * p * c, d)"
    )


def heads_of(width: int, overrides: Mapping[str, Option], known: Mapping[int, int], family: str) -> int:
    """The number of heads, which no tensor tells: as the user says, else that of the published model of this width."""
    heads = overrides.get("num_heads", known.get(width))
    if not isinstance(heads, int):
        raise BadInput(f"num_heads: not stored in tensors and width {width} is no published {family}'s; give num_heads=...")
    if heads < 1 or width % heads:
        raise BadInput(f"num_heads: {heads} does not divide the width {width}")
    return heads


def grid_of(shapes: Shapes, before: int = 0) -> tuple[int, int]:
    """Rows and columns of patches, by the position table; files of these families hold tables of squares alone, and of so
    many tokens `before` them."""
    shape = shapes["pos_embed"]
    side = math.isqrt(max(shape[1] - before, 0)) if len(shape) == 3 else 0
    if side == 0 or shape[0] != 1 or side**2 != shape[1] - before:
        more = f" and {before} more" * bool(before)
        raise BadInput(f"pos_embed {shape}: expected (1, n, d) with a square number n of tokens{more}")
    return side, side


def blocks_of(
    kind: str, sizes: Sizes, slots: Sequence[Slots], prefix: Prefix, overrides: Mapping[str, Option], first: int = 0
) -> tuple[BlockSpec, ...]:
    """The blocks whose tensors `by_slot` sorted, from number `first` on. Raises what `recognise` raises."""
    return tuple(
        BlockSpec(kind, tuple(
            (slot, recognise(kind, sizes, slot, f"blocks.{i}.{start}", found[slot], overrides))
            for slot, start in prefix.items()
        ))
        for i, found in enumerate(slots, first)
    )  # fmt: skip


def recognise(
    kind: str, sizes: Sizes, slot: str, prefix: str, shapes: Mapping[str, Shape], overrides: Mapping[str, Option]
) -> OpSpec:
    """The operator whose tensors these are, with its options. Raises `BadInput` naming what keeps it from any."""
    place = slot_of(kind, slot)
    for name, cls in ops.OPERATORS.items():
        if cls.role != place.role or _wrong_rank(cls, shapes):
            continue
        options = cls.recognise(shapes, overrides)
        if options is not None:
            return _resolve(kind, sizes, slot, prefix, OpSpec(name, tuple(options.items())), shapes)
    raise _unrecognised(place.role, prefix, shapes)


def _resolve(kind: str, sizes: Sizes, slot: str, prefix: str, found: OpSpec, shapes: Mapping[str, Shape]) -> OpSpec:
    """`found` with all options, checked; where its options are impossible, so are the shapes they were read from."""
    try:
        return slot_of(kind, slot).resolve(found, sizes)
    except BadInput as error:
        tensors = listing([f"{prefix}{name} {shape}" for name, shape in shapes.items() if len(shape) > 1])
        raise BadInput(f"{prefix.rstrip('.')}: {error}; read from {tensors}") from None


def _wrong_rank(cls: type[Operator], shapes: Mapping[str, Shape]) -> list[str]:
    """Tensors whose number of axes is not the operator's, or that are empty."""
    ranks = {key.name: _RANK[key.layout] for key in cls.torch_keys if key.layout in _RANK}
    return [n for n, rank in ranks.items() if n in shapes and (len(shapes[n]) != rank or min(shapes[n]) == 0)]


def _unrecognised(role: str, prefix: str, shapes: Mapping[str, Shape]) -> BadInput:
    """Compare with the operator whose names are nearest."""

    def names(cls: type[Operator]) -> set[str]:
        return {key.name for key in cls.torch_keys}

    classes = [cls for cls in ops.OPERATORS.values() if cls.role == role]
    nearest = min(classes, key=lambda cls: len(names(cls) ^ shapes.keys()))
    missing = listing([prefix + name for name in sorted(names(nearest) - shapes.keys())])
    extra = listing([prefix + name for name in sorted(shapes.keys() - names(nearest))])
    suspects = _wrong_rank(nearest, shapes) or list(shapes)
    ranks = listing([f"{prefix}{name} {shapes[name]}" for name in suspects])
    reasons = [f"missing {missing}" * bool(missing), f"unexpected {extra}" * bool(extra)]
    found = "; ".join(filter(None, reasons)) or f"mis-shaped, one of {ranks}"
    return BadInput(f"{prefix.rstrip('.')}: no known operator has these tensors; nearest is {nearest.kind}: {found}")


def check_operators(layout: Layout, spec: ModelSpec, shapes: Shapes, prefix: Prefix) -> None:
    """Where a tensor of an operator is mis-shaped, name also those that the operator's options were read from."""
    expected = tensor_shapes(layout, spec)
    wrong = [name for name, shape in expected.items() if name in shapes and shapes[name] != shape]
    reports = [f"{name} {shapes[name]} (expected {expected[name]})" for name in wrong]
    for i, block in enumerate(spec.blocks):
        for slot, begin in prefix.items():
            start = f"blocks.{i}.{begin}"
            if block[slot].options and any(name.startswith(start) for name in wrong):
                others = [n for n in expected if n.startswith(start) and n not in wrong and len(shapes.get(n, ())) > 1]
                reports += [f"{name} {shapes[name]} (read as {block[slot]})" for name in others]
    refuse("tensors mis-shaped", reports)
