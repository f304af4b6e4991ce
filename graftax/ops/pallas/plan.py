"""How the window kernel cuts a grid into strips and tiles, what of a core's memory that takes, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from graftax.ops.kernels import LANES
from graftax.ops.pallas.window import Window
from graftax.ops.target import core_memory, kernels

SUBLANES = 8
"""Tokens of a register, whose channels are `LANES`: what arrays are padded to on the chip."""

QUERIES = 128
"""Queries of a tile, as many as a matrix unit of most TPUs has rows; fewer tokens are left to the plain form."""

STRIP = 2048
"""Tokens of a strip, at most, where windows do not reach further: enough for long copies, few enough to overlap them."""

SHARE = 0.75
"""Of a core's memory, what blocks and sums may take; the compiler needs some for itself."""


@dataclass(frozen=True)
class Plan:
    """A grid, padded to whole strips of rows; a strip is copied to the chip with the rows around it that it sees, and worked
    on in tiles.

    Attributes:
        rows: of the padded grid.
        columns: of the padded grid.
        strip: rows of queries of a strip.
        tile: rows and columns of queries of a tile.
        reach: rows and columns that a tile meets on each side of it, columns in whole registers.
        heads: handled together: so many that their channels fill registers, or all.
        width: channels of a head.
        text: keys that all queries see.
    """

    rows: int
    columns: int
    strip: int
    tile: tuple[int, int]
    reach: tuple[int, int]
    heads: int
    width: int
    text: int

    @property
    def lanes(self) -> int:
        """Channels handled together."""
        return self.heads * self.width

    @property
    def strips(self) -> int:
        """Number of strips."""
        return self.rows // self.strip

    @property
    def tiles(self) -> int:
        """Number of tiles of a strip."""
        return self.strip * self.columns // math.prod(self.tile)

    @property
    def met(self) -> tuple[int, int]:
        """Rows and columns of keys that a tile meets."""
        rows, columns = (size + 2 * reach for size, reach in zip(self.tile, self.reach, strict=True))
        return min(rows, self.rows), min(columns, self.columns)

    @property
    def strip_met(self) -> int:
        """Rows of keys that a strip meets."""
        return min(self.strip + 2 * self.reach[0], self.rows)

    @property
    def lag(self) -> int:
        """Strips after which the gradients of a strip of keys are complete."""
        return -(-self.reach[0] // self.strip)

    @property
    def before(self) -> int:
        """Rows before a strip for which gradients are held. What a tile meets moves inwards at the last row, by a reach."""
        return max(2 * self.reach[0], self.lag * self.strip)

    @property
    def held(self) -> int:
        """Rows of keys whose gradients are held; at the first row, what is met moves inwards too."""
        return self.before + self.strip + 2 * self.reach[0]

    def memory(self, itemsize: int, *, backward: bool) -> int:
        """Bytes on the chip, about: blocks twice, to copy one while another is worked on, and a tile's products."""
        lanes = whole(self.lanes, LANES)
        row = whole(self.columns, 2 * SUBLANES) * lanes
        rows = (5 if backward else 2) * self.strip + 2 * self.strip_met
        text = 2 * whole(self.text, 2 * SUBLANES) * lanes * (itemsize + 4 * backward)
        sums = 2 * 4 * self.held * row if backward else 0
        keys = whole(math.prod(self.met), LANES) + whole(self.text, LANES)
        return 2 * (itemsize * rows * row + text) + sums + 8 * 4 * math.prod(self.tile) * keys

    def moved(self, itemsize: int, *, backward: bool) -> int:
        """Bytes to and from the chip for one image and these heads."""
        rows = (5 if backward else 2) * self.rows + 2 * self.strips * self.strip_met
        text = 2 * self.text * (itemsize + 4 * backward)
        return self.lanes * (itemsize * rows * self.columns + text)

    def pairs(self) -> int:
        """Pairs of a query and a key that are multiplied, of one head."""
        return self.rows * self.columns * (math.prod(self.met) + self.text)


def takes(q: jax.Array, k: jax.Array, window: Window) -> bool:
    """Whether operators leave these to the kernel: q (b, n, h, k), k (b, m + n, h, k), of at least `QUERIES` tokens.

    Only where they use kernels at all, and a strip fits on the chip, with its keys; on the way back too.
    """
    if not kernels() or q.shape[1] < QUERIES or q.dtype not in (jnp.bfloat16, jnp.float32):
        return False
    sizes = q.shape[2], q.shape[3], k.shape[1] - q.shape[1], q.dtype.itemsize
    return all(plan(window, *sizes, backward=backward) for backward in (False, True))


def plan(window: Window, heads: int, width: int, text: int, itemsize: int, *, backward: bool) -> Plan | None:
    """The cut with the longest strips that fits on the chip that this is traced for; None where none does, or only one whose
    tiles leave more than half of a matrix unit idle.

    Args:
        window: and its grid.
        heads: of the arrays.
        width: channels of a head.
        text: keys that all queries see.
        itemsize: bytes of a number.
        backward: whether for the gradients.
    """
    room = SHARE * core_memory()
    cuts = (_cut(window, strip, heads, width, text) for strip in _strips(window))
    full = (cut for cut in cuts if math.prod(cut.tile) >= QUERIES // 2)
    return next((cut for cut in full if cut.memory(itemsize, backward=backward) <= room), None)


def whole(length: int, size: int) -> int:
    """`length` up to a multiple of `size`."""
    return -(-length // size) * size


def _strips(window: Window) -> Iterator[int]:
    """Rows of a strip to try, powers of two, the most first: twice the reach pays for copying that."""
    most = max(STRIP // window.grid[1], 2 * window.reach((1, 1))[0], 1)
    yield from (2**i for i in range((min(most, window.grid[0]) - 1).bit_length(), -1, -1))


def _cut(window: Window, strip: int, heads: int, width: int, text: int) -> Plan:
    columns = whole(window.grid[1], SUBLANES)
    wide = 2 * SUBLANES if columns % (2 * SUBLANES) == 0 else SUBLANES
    tile = min(QUERIES // wide, strip), wide
    rows, beside = window.reach(tile)
    together = next((g for g in range(1, heads) if heads % g == 0 and g * width % LANES == 0), heads)
    reach = rows, whole(beside, SUBLANES)
    return Plan(whole(window.grid[0], strip), columns, strip, tile, reach, together, width, text)
