"""Selectors: short strings that name operator sites, "blocks[1::2].mixer".

Grammar: `blocks[ITEMS].SLOT`, SLOT `mixer` or `mlp`, ITEMS one or more of these, separated by commas, united:

    *            every block
    3, -1        one block, negative from the end
    1::2, 4:8    a Python slice; its bounds must lie within the model
    50%          every second block, 1, 3, 5, ...          } the interleavings of the grafting paper
    75%          all but every fourth, 1, 2, 3, 5, 6, ...  } (arXiv 2506.05340, Section 4); 100% is all
    deep:50%     the last half of the blocks, those next to the output (the paper's "deep": 14..27 of 28)
    top:50%      the first half, those next to the input (not the paper's "top-local", which ranks by locality)
    mha          blocks whose operator in this slot is of that kind

Shares of `deep` and `top` may be any percentage, rounded to the nearest number of blocks.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral

from graftax.errors import BadInput
from graftax.spec import SLOTS, ModelSpec, block_key


@dataclass(frozen=True, order=True)
class Site:
    """A place that holds one operator: `slot` "mixer" or "mlp" of block `block`. Prints as the selector that names it."""

    block: int
    slot: str

    def __str__(self) -> str:
        return f"blocks[{self.block}].{self.slot}"

    @property
    def path(self) -> str:
        """Where its weights are in the parameter tree: "blocks/03/mixer"."""
        return f"blocks/{block_key(self.block)}/{self.slot}"


Item = str | int | Site
Selector = Item | Iterable[Item]
"""A selector string, a site, a block number (where the slot is known), or several of these."""

_SHAPE = re.compile(r"blocks\[(?P<items>[^\[\]]*)\]\.(?P<slot>\w+)")
_SHARE = re.compile(r"(?:(?P<end>deep|top):)?(?P<percent>\d+(?:\.\d+)?)%")
_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?(?::(-?\d+)?)?")
_PERIODS = {50.0: 2, 75.0: 4}


def select(selector: Selector, spec: ModelSpec, slot: str | None = None) -> tuple[Site, ...]:
    """The sites that `selector` names in a model, in order, each once.

    A list is the union of its items; bare block numbers in it are sites of `slot`. Raises `BadInput` where a selector
    is malformed, out of range or selects nothing; the message names the selector, the depth and what is possible.
    """
    sites = {site for item in listed(selector) for site in _sites(item, spec, slot)}
    if not sites:
        raise BadInput("selector []: empty, expected at least one site")
    return tuple(sorted(sites))


def listed(selector: Selector) -> tuple[Item, ...]:
    """The selector as its items; an iterator is read once, here."""
    if isinstance(selector, str | Site) or not isinstance(selector, Iterable):
        return (selector,)
    return tuple(selector)


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


def _sites(item: Item, spec: ModelSpec, slot: str | None) -> list[Site]:
    if isinstance(item, Site | Integral):
        return _sites(str(item) if isinstance(item, Site) else f"blocks[{item}].{slot}", spec, slot)
    match = _SHAPE.fullmatch(item) if isinstance(item, str) else None
    if match is None or match["slot"] not in SLOTS:
        raise _bad(item, spec, "not a selector")
    kinds = [getattr(block, match["slot"]).kind for block in spec.blocks]
    try:
        blocks = [i for part in match["items"].split(",") for i in _blocks(part.strip(), kinds)]
    except ValueError as error:
        raise _bad(item, spec, str(error)) from None
    return [Site(i, match["slot"]) for i in blocks]


def _blocks(item: str, kinds: Sequence[str]) -> Sequence[int]:
    """Block numbers of one item, never none; raises `ValueError` with the reason."""
    depth = len(kinds)
    if item == "*":
        return range(depth)
    if match := _SHARE.fullmatch(item):
        found = _share(match["end"], float(match["percent"]), depth)
    elif match := _SLICE.fullmatch(item):
        found = _slice([None if bound is None else int(bound) for bound in match.groups()], depth)
    elif re.fullmatch(r"-?\d+", item):
        index = int(item)
        found = [index % depth] if -depth <= index < depth else []
    else:
        found = [i for i, kind in enumerate(kinds) if kind == item]
    if not found:
        raise ValueError(f"{item!r} selects no block")
    return found


def _share(end: str | None, percent: float, depth: int) -> Sequence[int]:
    if percent > 100:
        raise ValueError(f"{percent:g}% is more than all blocks")
    if end is not None:
        count = math.floor(depth * percent / 100 + 0.5)
        return range(depth - count, depth) if end == "deep" else range(count)
    if percent == 100:
        return range(depth)
    if percent not in _PERIODS:
        raise ValueError(f"{percent:g}% has no interleaving, only 50%, 75% and 100%")
    return [i for i in range(depth) if i % _PERIODS[percent]]


def _slice(bounds: list[int | None], depth: int) -> Sequence[int]:
    start, stop, step = bounds
    outside = [bound for bound in (start, stop) if bound is not None and not -depth <= bound <= depth]
    if outside:
        raise ValueError(f"slice bound {outside[0]} is out of range")
    if step == 0:
        raise ValueError("a slice cannot have step 0")
    return range(depth)[start:stop:step]


def _bad(item: object, spec: ModelSpec, reason: str) -> BadInput:
    kinds = ", ".join(sorted({getattr(block, slot).kind for block in spec.blocks for slot in SLOTS}))
    return BadInput(
        f"selector {item!r} on {spec.depth} blocks: {reason}; expected blocks[ITEMS].mixer or .mlp with ITEMS of "
        f"0..{spec.depth - 1} or negative, slices (1::2), *, 50%, 75%, 100%, deep:50%, top:50%, or a kind present ({kinds})"
    )
