"""What surrounds the blocks of an AuraFlow: its learned positions, and its head without a norm.

After cloneofsimo's minRF (`advanced/mmdit.py`), from which AuraFlow comes, with the positions of the released model
(ComfyUI's and diffusers' codes): they are cut from the middle of the table, and not from its beginning.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from graftax.backbones.embedders import image_of
from graftax.blocks.base import modulate, vectors
from graftax.ops.modulation import SiluLinear

TIME_SCALE = 1000.0
"""What a time in 0 .. 1 is multiplied by in its features."""


def side_of(positions: int) -> int:
    """Rows, and columns, of a table of so many positions."""
    return math.isqrt(positions)


def middle(table: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """The middle of a square table of positions (1, side * side, d) -> (1, rows * columns, d).

    It begins at side // 2 - rows // 2, so that of an odd number of rows the middle one is in place side // 2.
    """
    side, d = side_of(table.shape[1]), table.shape[-1]
    (top, rows), (left, columns) = ((side // 2 - size // 2, size) for size in grid)
    square = table.reshape(side, side, d)
    return square[top : top + rows, left : left + columns].reshape(1, rows * columns, d)


class Head(nn.Module):
    """Tokens (b, n, d) and conditioning vector (b, d) -> image (b, h, w, channels): modulated, but not normalised; without
    biases; starts at zero output.

    Attributes:
        patch: p.
        channels: of the image.
        grid: rows and columns of tokens.
        dtype: matmul type.
    """

    patch: int
    channels: int
    grid: tuple[int, int]
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:
        shift, scale = vectors(SiluLinear(2 * x.shape[-1], self.dtype, bias=False, name="adaln")(c), 2)
        numbers, zeros = self.patch**2 * self.channels, nn.initializers.zeros
        linear = nn.Dense(numbers, use_bias=False, dtype=self.dtype, kernel_init=zeros, name="linear")
        return image_of(linear(modulate(x, shift, scale)), self.grid, self.patch)
