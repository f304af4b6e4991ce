"""Plain shapes as coverage of pixels: each is an inequality over the unit square, sampled finely and averaged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Inside = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From x and y in [-1, 1], y downwards, to whether the point belongs to the shape."""

_FINE = 8  # samples per pixel and axis


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points, one upwards, on the unit circle: a point is inside where it is behind at most one of five lines."""
    angles = np.pi * (0.5 + 0.4 * np.arange(5))
    depth = np.cos(0.4 * np.pi)  # distance of the lines through every other point from the centre
    beyond = [x * np.cos(angle) + (0.08 - y) * np.sin(angle) < -depth * 1.05 for angle in angles]
    return np.sum(beyond, axis=0) <= 1


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The sextic (x^2 + y^2 - 1)^3 <= x^2 y^3, scaled to the square."""
    u, v = 1.16 * x, 0.1 - 1.12 * y
    return (u**2 + v**2 - 1) ** 3 <= u**2 * v**3


INSIDE: dict[str, Inside] = {
    "circle": lambda x, y: x**2 + y**2 <= 0.95**2,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) <= 0.85,
    "triangle": lambda x, y: (np.abs(x) <= (y + 0.92) * 0.56) & (y <= 0.8),
    "star": _star,
    "heart": _heart,
    "diamond": lambda x, y: np.abs(x) / 0.72 + np.abs(y) <= 1,
    "ring": lambda x, y: (x**2 + y**2 <= 0.95**2) & (x**2 + y**2 >= 0.5**2),
    "cross": lambda x, y: (np.minimum(np.abs(x), np.abs(y)) <= 0.3) & (np.maximum(np.abs(x), np.abs(y)) <= 0.92),
}


def coverage(kind: str, size: int) -> np.ndarray:
    """How much of each pixel (size, size) float32 in [0, 1] a shape of that side covers."""
    fine = (np.arange(size * _FINE) + 0.5) / (size * _FINE) * 2 - 1
    inside = INSIDE[kind](fine[None, :], fine[:, None])  # (8 size, 8 size)
    return inside.reshape(size, _FINE, size, _FINE).mean((1, 3), dtype=np.float32)
