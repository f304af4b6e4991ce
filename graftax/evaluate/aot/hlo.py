"""What a compiled program sends between devices, read from its optimised HLO text."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (?P<type>.+?) (?P<op>[\w\-]+)\((?P<rest>.*)$", re.MULTILINE)
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_LOOP = re.compile(r"condition=%?(?P<condition>[\w.\-]+), body=%?(?P<body>[\w.\-]+)")
_LIMIT = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
_SHAPE = re.compile(r"(?P<type>[a-z]+\d*\w*)\[(?P<dims>[\d,]*)\]")
_CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind in one run of a program.

    Attributes:
        count: how many.
        bytes: of the arrays that they make on one device.
    """

    count: int
    bytes: int


def collectives(hlo: str) -> dict[str, Collective]:
    """{kind: Collective} of an optimised HLO module, kinds that do not occur left out.

    A collective in a loop counts as often as the loop runs, by the constant its condition compares to; the branches of a
    conditional all count, so where blocks of several kinds share one loop the numbers are upper bounds. Bytes are those of
    the largest array among result and operands in flight: the gathered array, the array reduced before it is scattered.
    TPU programs cut one collective into several instructions, which share a channel; they count once.
    """
    bodies = _computations(hlo)
    times = _times(bodies)
    found: dict[str, dict[tuple[int, str], tuple[int, int]]] = defaultdict(dict)
    for name, body in bodies.items():
        for match in _INSTRUCTION.finditer(body):
            kind = match["op"].removesuffix("-start")
            if kind not in KINDS or not times[name]:
                continue
            channel = _CHANNEL.search(match["rest"])
            one = (times[name], channel[1] if channel else f"{name} {match.start()}")
            if kind == "all-reduce" and "all-reduce-scatter" in name:
                kind = "reduce-scatter"  # TPUs reduce and scatter in one fusion
            found[kind][one] = (times[name], times[name] * max(map(_bytes, _SHAPE.findall(match["type"]))))
    return {kind: Collective(*map(sum, zip(*found[kind].values(), strict=True))) for kind in KINDS if kind in found}


def _computations(hlo: str) -> dict[str, str]:
    """The text of every computation by name."""
    starts = list(_COMPUTATION.finditer(hlo))
    ends = [match.start() for match in starts[1:]] + [len(hlo)]
    return {match["name"]: hlo[match.end() : end] for match, end in zip(starts, ends, strict=True)}


def _times(bodies: dict[str, str]) -> dict[str, int]:
    """How often each computation runs in one run of the program, over all its callers."""
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, body in bodies.items():
        loops = {loop["body"]: _trips(bodies[loop["condition"]]) for loop in _LOOP.finditer(body)}
        called = [*_CALLED.findall(body), *(c.strip(" %") for found in _BRANCHES.findall(body) for c in found.split(","))]
        for callee in called:
            callers[callee].append((name, loops.get(callee, 1)))
    counts: dict[str, int] = {}

    def count(name: str) -> int:
        if name not in counts:
            counts[name] = sum(count(caller) * trips for caller, trips in callers[name]) if callers[name] else 1
        return counts[name]

    return {name: count(name) for name in bodies}


def _trips(condition: str) -> int:
    """How often a loop runs: the constant that its counter, which starts at 0, is compared to; 1 where there is none."""
    limits = [int(limit) for limit in _LIMIT.findall(condition)]
    return max(limits, default=1)


def _bytes(shape: tuple[str, str]) -> int:
    kind, dims = shape
    bits = re.search(r"\d+", kind)  # none in pred
    return max(int(bits[0]) // 8 if bits else 1, 1) * math.prod(int(size) for size in dims.split(",") if size)
