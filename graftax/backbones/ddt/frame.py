"""What surrounds the blocks of a DDT: its times, and the places of its tokens.

The semantics are those of the authors' code (MCG-NJU/DDT, `src/models/denoiser`).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from graftax.backbones.embedders import TimestepEmbed
from graftax.ops.rope import Rope, angles
from graftax.spec import Sizes

PERIOD = 10.0
"""Of the slowest sinusoid of times, which are data fractions 0 .. 1."""

EXTENT = 16.0
"""Where the last row and the last column are, whatever their number: positions are relative to the image."""


def time_embed(width: int, name: str | None = None) -> TimestepEmbed:
    """The embedding of times t (b,) -> (b, width)."""
    return TimestepEmbed(width, period=PERIOD, name=name)


def rope(sizes: Sizes) -> Rope:
    """Rotary tables of image tokens: pairs of a head's channels turn with the column and with the row, in turns.

    Places are evenly spread over 0 .. `EXTENT`, both ends included. Heads have a multiple of 4 channels.
    """
    rows, columns = (np.linspace(0, EXTENT, side) for side in sizes.grid)
    places = np.stack([np.tile(columns, len(rows)), np.repeat(rows, len(columns))], axis=1)  # (n, 2)
    half = sizes.head_dim // 2
    turned = angles(places, (half, half)).reshape(len(places), 2, -1)  # (n, axes, k / 4)
    turned = turned.swapaxes(1, 2).reshape(len(places), half)
    return jnp.asarray(np.cos(turned), jnp.float32), jnp.asarray(np.sin(turned), jnp.float32)
