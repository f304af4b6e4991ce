"""Which parameters a model has, and which of them a training changes, as a table."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from clu.parameter_overview import make_table
from flax.traverse_util import flatten_dict

from graftax.checkpoint.paths import work_path, write_text
from graftax.models.lora import LORA
from graftax.models.merge import MERGES
from graftax.ops.base import Params
from graftax.surgery.select import compact
from graftax.train.state import split

KEPT, NEW, FROZEN = "kept", "new", "frozen"
_BLOCK = re.compile(r"blocks/(\d+)/(.*)")


@dataclass(frozen=True)
class Row:
    """Leaves of one name, shape and status, over blocks that are alike.

    Attributes:
        parameter: name, with the blocks that have it.
        shape: of one.
        dtype: its type.
        count: numbers in all of them.
        status: "kept", "new" or "frozen".
    """

    parameter: str
    shape: str
    dtype: str
    count: int
    status: str


def parameter_rows(params: Params, new: Iterable[str] | None = (), frozen: Sequence[str] = ()) -> list[Row]:
    """A row per leaf, blocks that are alike in one, with its status.

    A leaf is "frozen" where a pattern of `frozen` (`graftax.train.state.split`) keeps it out of training; else "new" in the
    operators at the paths `new` (None: everywhere), in the projections of merged steps and in adapters; else "kept", as it
    came from the model before. `params` plain, its leaves arrays or their shapes. Raises BadInput where `split` does.
    """
    still = set(flatten_dict(split(params, frozen)[1], sep="/"))
    added = ("",) if new is None else tuple(f"{path}/" for path in (*new, MERGES, LORA))
    blocks: dict[tuple[str, str, tuple[int, ...], str, str], list[int]] = {}
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    for path, leaf in flat.items():
        status = FROZEN if path in still else NEW if path.startswith(added) else KEPT
        within = _BLOCK.fullmatch(path)
        name = within[2] if within else path
        ids = blocks.setdefault((name, "blocks" if within else "", leaf.shape, str(leaf.dtype), status), [])
        ids += [int(within[1])] if within else []
    return [
        Row(
            f"{part}[{compact(ids)}]/{name}" if part else name,
            "x".join(map(str, shape)),
            dtype,
            math.prod(shape) * max(len(ids), 1),
            status,
        )
        for (name, part, shape, dtype, status), ids in blocks.items()
    ]


def parameter_table(params: Params, new: Iterable[str] | None = (), frozen: Sequence[str] = ()) -> str:
    """`parameter_rows` as a table with a line of totals, without a line end."""
    rows = parameter_rows(params, new, frozen)
    totals = {status: sum(row.count for row in rows if row.status == status) for status in (KEPT, NEW, FROZEN)}
    told = ", ".join(f"{count:,} {status}" for status, count in totals.items() if count)
    return f"{make_table(rows)}\n{sum(totals.values()):,} parameters: {told}"


def write_parameters(workdir: str | os.PathLike[str], table: str) -> None:
    """Leave `table` in workdir/parameters.txt, once for all processes; what an earlier start left there stays."""
    path = work_path(workdir) / "parameters.txt"
    if jax.process_index() == 0 and not path.exists():
        write_text(path, f"{table}\n")
