"""Which keys a query sees: what the window kernel asks of a window, and the window of a sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import jax

FOLD = 16
"""Tokens of a row into which a sequence is folded: what a register of a TPU holds of 128 channels in bfloat16."""


class Window(Protocol):
    """Queries and keys on one grid, tokens in raster order, and which of them meet. Hashable: programs are kept by it."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        ...

    def reach(self, tile: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns by which what the queries of a tile see stands out of it, at most; tiles begin at multiples of
        their size (rows, columns)."""
        ...

    def sees(self, row: jax.Array, column: jax.Array, key_row: jax.Array, key_column: jax.Array) -> jax.Array:
        """Whether a query sees a key, by their places, which broadcast. False for keys that are not on the grid."""
        ...


@dataclass(frozen=True)
class Band:
    """Tokens at most `window` before or after a query in a sequence, folded into rows of `FOLD`.

    Attributes:
        n: tokens.
        window: how far a token sees.
    """

    n: int
    window: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns; the last row may not be full."""
        return -(-self.n // FOLD), FOLD

    def reach(self, tile: tuple[int, int]) -> tuple[int, int]:
        """As in `Window`."""
        return -(-self.window // FOLD), FOLD

    def sees(self, row: jax.Array, column: jax.Array, key_row: jax.Array, key_column: jax.Array) -> jax.Array:
        """As in `Window`."""
        query, key = row * FOLD + column, key_row * FOLD + key_column
        return (abs(query - key) <= self.window) & (key < self.n)
