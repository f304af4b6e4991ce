"""What things look like to the judge: how each differs from the ground, coarsely for finding and finely for measuring."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy import fft

from graftax.data.scenes.shapes import coverage
from graftax.data.scenes.sprites import sprite
from graftax.data.scenes.vocabulary import COLOURS, EMOJI, SHAPES
from graftax.data.scenes.world import SIDE

COARSE = 2
"""Pixels of a picture, along an axis, in one of the coarse picture in which things are looked for."""

_SIZES = (20, 24, 28, 32)
_GROUND = np.full(3, 244, np.float32)  # about that of every scene; measuring takes the picture's own

PALETTE = np.array(list(COLOURS.values()), np.float32)
"""(8, 3) the colours of shapes, of 255."""

STRICTNESS = 0.1
"""Share of itself by which a thing must explain more than it adds: a large one over two small ones explains both badly."""

STRENGTH = 0.7, 1.1
"""Least and most contrast of a thing to the ground, in shares of its sprite's own."""

LEAST_SHARE = (STRENGTH[0] + STRICTNESS / STRENGTH[0]) / 2
"""<D, T> / |T|^2 up to which the gain does not exceed `STRICTNESS` |T|^2, as the least strength has it."""

Look = tuple[str, str | None]
"""Kind and colour of a thing."""

LOOKS: tuple[Look, ...] = (*((kind, None) for kind in EMOJI), *((kind, colour) for colour in COLOURS for kind in SHAPES))


def difference(look: Look, size: int, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How a thing differs from the ground (s, s, 3), and what it covers of each pixel (s, s, 1)."""
    found = sprite(*look, size)
    return found.colour - found.alpha * ground, found.alpha


@functools.cache
def planes(kind: str, size: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Colours times coverage (3, s s) of an emoji, or of a black shape; coverage (s s,), and the sum of its squares."""
    found = sprite(kind, "black" if kind in SHAPES else None, size)
    return np.ascontiguousarray(found.colour.reshape(-1, 3).T), found.alpha.ravel(), float((found.alpha**2).sum())


@dataclass(frozen=True)
class Bank:
    """Coarse templates with their centres at the origin, as spectra to correlate coarse pictures with.

    Each is divided by its energy, its own sum of squares, so that products are shares of the template.

    Attributes:
        sizes: of the templates.
        emoji: (sizes, 20, 3, 32, 17) complex64, conjugate spectra of how an emoji differs from the ground.
        shapes: (sizes, 8, 32, 17) complex64, conjugate spectra of what a shape covers.
        contrasts: (8, 3) float32, how colours differ from the ground.
        energy: (sizes, looks) sums of squares of how a look differs from the ground.
    """

    sizes: tuple[int, ...]
    emoji: np.ndarray
    shapes: np.ndarray
    contrasts: np.ndarray
    energy: np.ndarray

    @property
    def least(self) -> float:
        """The sum of squares of a coarse picture from which on a thing may be in it: no gain is larger than that."""
        return STRICTNESS * float(self.energy.min())

    def gains(self, rest: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """By how much each look, centred at each place, would lower the sum of squares of what is left.

        That is |D|^2 - |D - T|^2 = 2 <D, T> - |T|^2 for coarse pictures D, `rest` (b, 3, 32, 32), and a template T. Returns
        for each size <D, T> / |T|^2 (b, looks, i, i), at the places `inside`, of which `gain` makes the gain in shares of
        |T|^2; and the most by which a place's gain exceeds `STRICTNESS` |T|^2 (b, 32, 32), at any look and size, -inf where
        it never does.
        """
        spectra, b = np.asarray(fft.rfft2(rest)), len(rest)  # (b, 3, 32, 17)
        shares, places = [], np.full((b, *rest.shape[2:]), -np.inf, np.float32)
        for size, emoji, shapes, energy in zip(self.sizes, self.emoji, self.shapes, self.energy, strict=True):
            within = (..., inside(size), inside(size))
            products = sum(spectra[:, c, None] * emoji[:, c] for c in range(3))  # (b, 20, 32, 17)
            seen = np.asarray(fft.irfft2(products))[within]  # (b, 20, i, i)
            covered = np.asarray(fft.irfft2(spectra[:, :, None] * shapes))[within]  # (b, 3, 8, i, i)
            i = seen.shape[-1]
            shared = np.empty((b, len(LOOKS), i, i), np.float32)
            shared[:, : len(EMOJI)] = seen
            coloured = shared[:, len(EMOJI) :].reshape(b, len(COLOURS), -1)  # (b, 8, 8 i i), a view
            np.matmul(self.contrasts, covered.reshape(b, 3, -1), out=coloured)
            # What is less than half there explains less than that: most places need not be looked at.
            some = shared.max(1) > LEAST_SHARE  # (b, i, i)
            excess = np.full(some.shape, -np.inf, np.float32)
            picture, y, x = np.nonzero(some)
            excess[some] = ((gain(shared[picture, :, y, x]) - STRICTNESS) * energy).max(1)
            np.maximum(places[within], excess, out=places[within])
            shares.append(shared)
        return shares, places


def gain(shares: np.ndarray) -> np.ndarray:
    """The gain in shares of |T|^2 where <D, T> / |T|^2 is `shares`: at the best strength s within `STRENGTH`, s (2 <D, T> -
    s)."""
    strength = np.minimum(np.maximum(shares, STRENGTH[0]), STRENGTH[1])
    return strength * (2 * shares - strength)


def inside(size: int) -> slice:
    """Along an axis of a coarse picture: centres of things of this size in pixels that are wholly in it."""
    half = size // 2
    return slice(half // COARSE, (SIDE - half) // COARSE + 1)


@functools.cache
def bank() -> Bank:
    """The templates of all emoji, and of all shapes whatever their colour."""
    emoji = np.array([[_centred(difference((kind, None), size, _GROUND)[0]) for kind in EMOJI] for size in _SIZES])
    shapes = np.array([[_centred(coverage(kind, size)[..., None])[0] for kind in SHAPES] for size in _SIZES])
    contrasts = PALETTE - _GROUND
    of_emoji, of_shapes, of_colours = (emoji**2).sum((2, 3, 4)), (shapes**2).sum((2, 3)), (contrasts**2).sum(1)
    energy = np.concatenate([of_emoji, (of_colours[:, None] * of_shapes[:, None]).reshape(len(_SIZES), -1)], axis=1)
    spectra = (np.conj(np.asarray(fft.rfft2(all_ / own))) for all_, own in (
        (emoji, of_emoji[..., None, None, None]), (shapes, of_shapes[..., None, None])
    ))  # fmt: skip
    emoji, shapes = spectra
    return Bank(_SIZES, emoji, shapes, contrasts / of_colours[:, None], energy)


def coarse(images: np.ndarray) -> np.ndarray:
    """Means of squares of `COARSE` pixels: (b, h, w, c) to (b, c, h / 2, w / 2)."""
    parts = [images[:, y::COARSE, x::COARSE] for y in range(COARSE) for x in range(COARSE)]
    return np.moveaxis(sum(parts[1:], parts[0]) / np.float32(len(parts)), -1, 1)


def _centred(template: np.ndarray) -> np.ndarray:
    """(c, 32, 32): a template (s, s, c) in a coarse picture that is else empty, its centre at the upper left corner."""
    whole, half = np.zeros((1, SIDE, SIDE, template.shape[-1]), np.float32), len(template) // 2
    whole[0, : len(template), : len(template)] = template
    return coarse(np.roll(whole, (-half, -half), (1, 2)))[0]
