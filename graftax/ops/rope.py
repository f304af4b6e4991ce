"""Rotary positions: pairs of a head's channels turned by angles that grow with the place of a token."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from graftax.errors import BadInput

Rope = tuple[jax.Array, jax.Array]
"""Cosines and sines (t, k / 2) float32 of all tokens of the streams, text before image; (b, t, k / 2) where every image has
other tokens."""


def angles(places: np.ndarray, axes: Sequence[int], theta: float = 10_000.0) -> np.ndarray:
    """Angles (t, k / 2) float64 of tokens at `places` (t, number of axes); k = sum of `axes`, channels of a head for each.

    Channel pair i of an axis with c channels turns by place * theta^(-2 i / c) (Su et al., arXiv 2104.09864, Section 3.2.2;
    several axes side by side as in Flux). Raises `BadInput` where axes are no even numbers, one for each column.
    """
    if places.ndim != 2 or len(axes) != places.shape[1] or any(c < 0 or c % 2 for c in axes):
        raise BadInput(f"rotary axes: got {tuple(axes)} for places {places.shape}, expected an even number for each column")
    rates = [theta ** (-np.arange(0, c, 2, dtype=np.float64) / c) for c in axes]
    return np.concatenate([places[:, i : i + 1] * rate for i, rate in enumerate(rates)], axis=1)


def tables(places: np.ndarray, axes: Sequence[int], theta: float = 10_000.0) -> Rope:
    """Cosines and sines of `angles`, computed in float64: (t, k / 2) float32 each."""
    turned = angles(places, axes, theta)
    return jnp.asarray(np.cos(turned), jnp.float32), jnp.asarray(np.sin(turned), jnp.float32)


def rotate(x: jax.Array, rope: Rope, strength: jax.Array | None = None) -> jax.Array:
    """x (b, t, h, k) with neighbouring channels (2 i, 2 i + 1) turned by their token's angle, in float32 inside.

    With a `strength` (h,) head h turns by so many times the angle, which then lies between -pi and pi.
    """
    cos, sin = (table[..., None, :] for table in rope)  # (t, 1, k / 2), or (b, t, 1, k / 2)
    if strength is not None:
        angle = strength[:, None] * jnp.arctan2(sin, cos)  # (t, h, k / 2)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
