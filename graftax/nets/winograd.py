"""3x3 convolutions with fewer products on CPUs: Winograd's minimal filtering.

A convolution F(2x2, 3x3): four pixels of a square come from sixteen products of sums of the 4x4 pixels around them with sums
of the nine weights, where the convolution itself takes 36. An image doubled before it: the four pixels that one becomes come
from nine products of sums of the 3x3 around it, where even four convolutions on the small image take sixteen.

Each of these is one product of matrices over all squares. XLA's convolutions for CPUs run no faster than its products, so
that time falls nearly as their number does. On accelerators nothing is gained.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), Section 4.1; the doubled one
is derived from w0 x0 + (w1 + w2) x1 = w0 (x0 - x1) + (w0 + w1 + w2) x1 and its mirror image.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

Matrix = tuple[tuple[float, ...], ...]
Square = list[list[jax.Array]]

LEAST_CHANNELS, LEAST_PIXELS = 64, 32 * 32
"""Of input and output, and of all images together, from which it is quicker. Two AVX-512 cores, time over that of the
convolution: 0.69 with 128 channels at 256x256, 0.6 with 256 at 128x128, 0.57 with 512 at 64x64, 0.69 with 512 at 32x32."""

MOST_NUMBERS = 2**25
"""Of the larger of input and output: the sixteen products take four times the memory of the result."""


@dataclass(frozen=True)
class Filter:
    """How squares of 2x2 pixels come from the pixels around, in each direction alike.

    Attributes:
        pixels: pixels of a row -> what is multiplied.
        weights: three weights of a row -> what it is multiplied with.
        sums: products -> two pixels of the result.
        step: pixels of the image from one square to the next.
    """

    pixels: Matrix
    weights: Matrix
    sums: Matrix
    step: int


PLAIN = Filter(
    pixels=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    weights=((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    sums=((1, 1, 1, 0), (0, 1, -1, -1)),
    step=2,
)
DOUBLED = Filter(
    pixels=((1, -1, 0), (0, 1, 0), (0, -1, 1)),
    weights=((1, 0, 0), (1, 1, 1), (0, 0, 1)),
    sums=((1, 1, 0), (0, 1, 1)),
    step=1,
)


def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x (b, h, w, c) convolved with kernel (3, 3, c, d), height and width kept by zeros around it: (b, h, w, d).

    On CPUs by fewer products where `suits` says so: in float32 the same to about 1e-6 of the largest number.
    """
    return _best(PLAIN, x, kernel)


def doubled_conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """As `conv3x3` of x (b, h, w, c) in which every pixel has become four: (b, 2 h, 2 w, d)."""
    return _best(DOUBLED, x, kernel)


def suits(way: Filter, x: jax.Array, kernel: jax.Array) -> bool:
    """Whether fewer products can be taken, and pay on a CPU: float32, whole squares, many channels and pixels, but not so
    many numbers that memory matters."""
    b, h, w, c = x.shape
    d = kernel.shape[-1]
    return (
        x.dtype == kernel.dtype == jnp.float32
        and h % way.step == w % way.step == 0
        and min(c, d) >= LEAST_CHANNELS
        and b * h * w >= LEAST_PIXELS
        and b * h * w * max(c, 4 * d // way.step**2) <= MOST_NUMBERS
    )


def convolved(way: Filter, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv3x3` or `doubled_conv3x3` by XLA's convolutions."""
    conv = functools.partial(jax.lax.conv_general_dilated, window_strides=(1, 1), dimension_numbers=("NHWC", "HWIO", "NHWC"))
    if way is PLAIN:
        return conv(x, kernel, padding="SAME")
    # The nine weights meet four pixels of the small image alone, so that their sums are a 2x2 convolution for each of the
    # four places of a new pixel within its old one: 4 / 9 of the products, on the small image.
    rows = [_halved(kernel, 0, place) for place in (0, 1)]
    padding = [[((1 - i, i), (1 - j, j)) for j in (0, 1)] for i in (0, 1)]
    return _placed([[conv(x, _halved(rows[i], 1, j), padding=padding[i][j]) for j in (0, 1)] for i in (0, 1)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def filtered(way: Filter, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolved` by fewer products, for whole squares. Gradients are those of the convolution."""
    b, h, w, c = x.shape
    padded, around = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), range(len(way.pixels))

    def pixels(i: int, j: int) -> jax.Array:
        """Pixel (i, j) around each square: (b, h / step, w / step, c)."""
        return padded[:, i : i + h - way.step + 1 : way.step, j : j + w - way.step + 1 : way.step]

    weights = _both(way.weights, [[kernel[i, j] for j in range(3)] for i in range(3)])  # each (c, d)
    seen = _both(way.pixels, [[pixels(i, j) for j in around] for i in around])
    # So many matrices, not one array of them: a CPU then writes each in one go, and multiplies it with all its cores.
    products = [[p.reshape(-1, c) @ u for p, u in zip(*rows, strict=True)] for rows in zip(seen, weights, strict=True)]
    shape = (b, h // way.step, w // way.step, -1)
    return _placed([[part.reshape(shape) for part in row] for row in _both(way.sums, products)])


def _forward(way: Filter, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return filtered(way, x, kernel), (x, kernel)


def _backward(way: Filter, inputs: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, ...]:
    return jax.vjp(functools.partial(convolved, way), *inputs)[1](slope)


filtered.defvjp(_forward, _backward)


def _best(way: Filter, x: jax.Array, kernel: jax.Array) -> jax.Array:
    plain, fewer = functools.partial(convolved, way), functools.partial(filtered, way)
    return jax.lax.platform_dependent(x, kernel, cpu=fewer, default=plain) if suits(way, x, kernel) else plain(x, kernel)


def _both(matrix: Matrix, parts: Square) -> Square:
    """matrix parts matrix^T, of a square of arrays."""
    rows = [[_combined(row, column) for column in zip(*parts, strict=True)] for row in matrix]
    return [[_combined(row, line) for row in matrix] for line in rows]


def _combined(factors: Sequence[float], parts: Sequence[jax.Array]) -> jax.Array:
    terms = (part if factor == 1 else factor * part for factor, part in zip(factors, parts, strict=True) if factor)
    return functools.reduce(jnp.add, terms)


def _placed(square: Square) -> jax.Array:
    """Pixels (b, h, w, d) of all squares, by their place in it: the image (b, 2 h, 2 w, d)."""
    b, h, w, _ = square[0][0].shape
    return jnp.stack([jnp.stack(row, 3) for row in square], 2).reshape(b, 2 * h, 2 * w, -1)  # from (b, h, 2, w, 2, d)


def _halved(kernel: jax.Array, axis: int, place: int) -> jax.Array:
    """Three weights along an axis as the two that the pixels at `place` 0 or 1 within an old one see of the old ones."""
    first, middle, last = jnp.split(kernel, 3, axis)
    return jnp.concatenate([first, middle + last] if place == 0 else [first + middle, last], axis)
