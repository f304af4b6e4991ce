"""Selectors: short strings that name operator sites, "blocks[1::2].mixer".

Grammar: `GROUP[ITEMS].SLOT`.

GROUP is `blocks`, all blocks, or a kind of block (`double`), whose blocks are then counted by themselves. SLOT is a slot's
name (`mixer`, `img/mlp`), its last part (`mlp` of a block with several streams: all of them), or a role (`norm`: every norm;
`channel`, `modulation`). ITEMS are one or more of these, separated by commas, united:

    *            every block
    3, -1        one block, negative from the end
    1::2, 4:8    a Python slice; its bounds must lie within the group
    50%          every second block, 1, 3, 5, ...          } the interleavings of the grafting paper
    75%          all but every fourth, 1, 2, 3, 5, 6, ...  } (arXiv 2506.05340, Section 4); 100% is all
    deep:50%     the last half of the blocks, those next to the output (the paper's "deep": 14..27 of 28)
    top:50%      the first half, those next to the input (not the paper's "top-local", which ranks by locality)
    mha          blocks whose operator in this slot is of that kind

Shares of `deep` and `top` may be any percentage, rounded to the nearest number of blocks. Blocks without such a slot are
left out.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral

from graftax.blocks import block_kind
from graftax.errors import BadInput, did_you_mean
from graftax.spec import ModelSpec, OpSpec


@dataclass(frozen=True, order=True)
class Site:
    """A place that holds one operator. Prints as the selector that names it.

    Attributes:
        block: number of the block.
        slot: name of the slot in it.
    """

    block: int
    slot: str

    def __str__(self) -> str:
        return f"blocks[{self.block}].{self.slot}"

    def path(self, spec: ModelSpec) -> str:
        """Where its weights are in the parameter tree of a model of `spec`: "blocks/03/mixer"."""
        return f"blocks/{spec.block_key(self.block)}/{self.slot}"

    def held(self, spec: ModelSpec) -> OpSpec:
        """The operator that it holds."""
        return spec.blocks[self.block][self.slot]


Item = str | int | Site
Selector = Item | Iterable[Item]
"""A selector string, a site, a block number (where the role is known), or several of these."""

SHAPE = re.compile(r"(?P<group>\w+)\[(?P<items>[^\[\]]*)\]\.(?P<slot>[\w/]+)")
_SHARE = re.compile(r"(?:(?P<end>deep|top):)?(?P<percent>\d+(?:\.\d+)?)%")
_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?(?::(-?\d+)?)?")
PERIODS = {50.0: 2, 75.0: 4}
"""Percentage of blocks -> all but every so many-th."""


def select(selector: Selector, spec: ModelSpec, role: str | None = None) -> tuple[Site, ...]:
    """The sites that `selector` names in a model, in order, each once.

    A list is the union of its items; bare block numbers in it are the sites of `role` there. Raises `BadInput` where a
    selector is malformed, out of range or selects nothing; the message names the selector, the depth and what is possible.
    """
    sites = {site for item in listed(selector) for site in _sites(item, spec, role)}
    if not sites:
        raise BadInput("selector []: empty, expected at least one site")
    return tuple(sorted(sites))


def listed(selector: Selector) -> tuple[str | int, ...]:
    """The selector as its items, sites written out; an iterator is read once, here."""
    several = isinstance(selector, Iterable) and not isinstance(selector, str | Site)
    items = tuple(selector) if several else (selector,)  # pyright: ignore[reportArgumentType]
    return tuple(str(item) if isinstance(item, Site) else item for item in items)  # pyright: ignore[reportReturnType]


def all_sites(spec: ModelSpec, *roles: str) -> tuple[Site, ...]:
    """Every site of a model, or every one of `roles`."""
    return tuple(
        Site(i, slot.name)
        for i, block in enumerate(spec.blocks)
        for slot in block_kind(block.kind).slots
        if not roles or slot.role in roles
    )


def compact(blocks: Sequence[int]) -> str:
    """Ascending block numbers in the grammar above, as briefly as it can: (1, 3, 5) -> "1:6:2"."""
    steps = {b - a for a, b in itertools.pairwise(blocks)}
    if len(blocks) > 2 and len(steps) == 1 and steps != {1}:
        return f"{blocks[0]}:{blocks[-1] + 1}:{steps.pop()}"
    return ranges(blocks)


def ranges(blocks: Sequence[int]) -> str:
    """Block numbers in any order, runs of three or more as half-open ranges: (0, 1, 2, 7, 6) -> "0:3,7,6"."""
    runs = [[b for _, b in run] for _, run in itertools.groupby(enumerate(blocks), key=lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0]}:{run[-1] + 1}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)


def _sites(item: str | int, spec: ModelSpec, role: str | None) -> list[Site]:
    if isinstance(item, Integral) and role is not None:
        return _sites(f"blocks[{item}].{role}", spec, role)
    match = SHAPE.fullmatch(item) if isinstance(item, str) else None
    if match is None:
        raise _bad(item, spec, "not a selector")
    group = [i for i, block in enumerate(spec.blocks) if match["group"] in ("blocks", block.kind)]
    named = {i: _slots(spec.blocks[i].kind, match["slot"]) for i in group}
    if not group or not any(named.values()):
        raise _bad(item, spec, f"no such {'slot' if group else 'kind of block'}", match["slot" if group else "group"])
    try:
        return [site for part in match["items"].split(",") for site in _chosen(part.strip(), spec, group, named)]
    except ValueError as error:
        raise _bad(item, spec, str(error)) from None


def _slots(kind: str, text: str) -> list[str]:
    """Names of the slots of a block kind that `text` names: by name, by last part, by role."""
    slots = block_kind(kind).slots
    return [slot.name for slot in slots if text in (slot.name, slot.name.rpartition("/")[2], slot.role)]


def _chosen(item: str, spec: ModelSpec, group: list[int], named: dict[int, list[str]]) -> list[Site]:
    """The sites of one item, never none; raises `ValueError` with the reason."""
    places = _places(item, len(group))
    if places is None:  # a kind of operator
        found = [Site(i, slot) for i in group for slot in named[i] if spec.blocks[i][slot].kind == item]
    else:
        found = [Site(group[place], slot) for place in places for slot in named[group[place]]]
    if not found:
        raise ValueError(f"{item!r} selects no block")
    return found


def _places(item: str, count: int) -> Sequence[int] | None:
    """Places in a group of `count` blocks that an item names; None where it is a word."""
    if item == "*":
        return range(count)
    if match := _SHARE.fullmatch(item):
        return _share(match["end"], float(match["percent"]), count)
    if match := _SLICE.fullmatch(item):
        return _slice([None if bound is None else int(bound) for bound in match.groups()], count)
    if re.fullmatch(r"-?\d+", item):
        index = int(item)
        return [index % count] if -count <= index < count else []
    return None


def _share(end: str | None, percent: float, count: int) -> Sequence[int]:
    if percent > 100:
        raise ValueError(f"{percent:g}% is more than all blocks")
    if end is not None:
        part = math.floor(count * percent / 100 + 0.5)
        return range(count - part, count) if end == "deep" else range(part)
    if percent == 100:
        return range(count)
    if percent not in PERIODS:
        raise ValueError(f"{percent:g}% has no interleaving, only 50%, 75% and 100%")
    return [i for i in range(count) if i % PERIODS[percent]]


def _slice(bounds: list[int | None], count: int) -> Sequence[int]:
    start, stop, step = bounds
    outside = [bound for bound in (start, stop) if bound is not None and not -count <= bound <= count]
    if outside:
        raise ValueError(f"slice bound {outside[0]} is out of range")
    if step == 0:
        raise ValueError("a slice cannot have step 0")
    return range(count)[start:stop:step]


def _bad(item: object, spec: ModelSpec, reason: str, name: str = "") -> BadInput:
    """The error on an item; `name` is the word in it that is not known, if one is."""
    kinds = dict.fromkeys(block.kind for block in spec.blocks)
    names = dict.fromkeys(slot.name for kind in kinds for slot in block_kind(kind).slots)
    slots = ", ".join(names)
    held = ", ".join(sorted({op.kind for block in spec.blocks for _, op in block.ops}))
    groups = " or ".join(["blocks", *kinds])
    return BadInput(
        f"selector {item!r} on {spec.depth} blocks: {reason}; expected GROUP[ITEMS].SLOT with GROUP {groups}, SLOT of "
        f"{slots} or a role, ITEMS of 0..{spec.depth - 1} or negative, slices (1::2), *, 50%, 75%, 100%, deep:50%, top:50%, "
        f"or an operator present ({held}){did_you_mean(name, [*names, 'blocks', *kinds])}"
    )
