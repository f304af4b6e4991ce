"""A function of images over tiles of a large one, faded into each other: memory is that of one tile."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graftax.errors import BadInput

Function = Callable[[np.ndarray], np.ndarray]
"""(b, h, w, c) -> (b, factor h, factor w, d)."""


def in_tiles(function: Function, arrays: np.ndarray, tile: int, overlap: int, factor: int) -> np.ndarray:
    """`function` of arrays (b, h, w, c), tile by tile: (b, factor h, factor w, d) float32.

    Tiles are `tile` x `tile` (or the whole side, where that is less), spread evenly so that neighbours share at least
    `overlap`. A tile's weight rises over `factor * overlap` pixels from its border inwards; each pixel is the weighted
    mean of the tiles that cover it. Raises `BadInput` unless 0 <= overlap < tile.
    """
    if not 0 <= overlap < tile:
        raise BadInput(f"tiles: tile {tile}, overlap {overlap}, expected 0 <= overlap < tile")
    b, *sides, _ = arrays.shape
    high, wide = (min(tile, side) for side in sides)
    weight = np.outer(*(_weights(factor * side, factor * overlap) for side in (high, wide)))[..., None]
    total, weights = None, np.zeros((*(factor * side for side in sides), 1), np.float32)
    for top in starts(sides[0], high, overlap):
        for left in starts(sides[1], wide, overlap):
            part = function(arrays[:, top : top + high, left : left + wide])  # (b, factor high, factor wide, d)
            if total is None:
                total = np.zeros((b, *weights.shape[:2], part.shape[-1]), np.float32)
            rows, columns = slice(factor * top, factor * (top + high)), slice(factor * left, factor * (left + wide))
            total[:, rows, columns] += weight * part
            weights[rows, columns] += weight
    assert total is not None, "starts() gives at least one"
    return total / weights


def starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin so that they cover 0..size: the fewest that share `overlap`, evenly spread."""
    count = 1 if size <= tile else -(-(size - overlap) // (tile - overlap))
    return [round(start) for start in np.linspace(0, size - tile, count)]


def _weights(size: int, fade: int) -> np.ndarray:
    """(size,) float32: rising from each end over `fade` pixels, else 1."""
    from_end = np.arange(size) + 0.5
    return np.minimum(1, np.minimum(from_end, from_end[::-1]) / max(fade, 0.5)).astype(np.float32)
