"""What things look like to the judge: how each differs from the ground, coarsely for finding and finely for measuring."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

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

Look = tuple[str, str | None]
"""Kind and colour of a thing."""

LOOKS: tuple[Look, ...] = (*((kind, None) for kind in EMOJI), *((kind, colour) for kind in SHAPES for colour in COLOURS))


def difference(look: Look, size: int, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How a thing differs from the ground (s, s, 3), and what it covers of each pixel (s, s, 1)."""
    found = sprite(*look, size)
    return found.colour - found.alpha * ground, found.alpha


@dataclass(frozen=True)
class Bank:
    """Coarse templates with their centres at the origin, as spectra to correlate coarse pictures with.

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

    def gains(self, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By how much each look, centred at each place, would lower the sum of squares of what is left.

        That is |D|^2 - |D - T|^2 = 2 <D, T> - |T|^2 for coarse pictures D, `rest` (b, 3, 32, 32), and a template T. Returns
        the gain at the best size (b, looks, 32, 32), -inf where nothing would be inside; the number of that size, likewise;
        and the most by which a place's gain exceeds `STRICTNESS` |T|^2 (b, 32, 32), at any look and size.
        """
        spectra = np.fft.rfft2(rest)[:, None]  # (b, 1, 3, 32, 17)
        best = np.full((len(rest), len(LOOKS), *rest.shape[2:]), -np.inf, np.float32)
        which, places = np.zeros(best.shape, np.int8), best[:, 0].copy()
        for k, size in enumerate(self.sizes):
            inside = (..., *(slice(size // 2 // COARSE, (SIDE - size // 2) // COARSE + 1),) * 2)
            emoji = np.fft.irfft2((spectra * self.emoji[k]).sum(2))[inside]  # (b, 20, i, i)
            covered = np.fft.irfft2(spectra * self.shapes[k][:, None])[inside]  # (b, 8, 3, i, i)
            shapes = self.contrasts @ covered.reshape(*covered.shape[:3], -1)  # (b, 8, 8, i i)
            shared = np.concatenate([emoji, shapes.reshape(len(rest), -1, *emoji.shape[2:])], axis=1)
            energy = self.energy[k, :, None, None]
            strength = np.clip(shared / energy, *STRENGTH)
            found = strength * (2 * shared - strength * energy)
            np.maximum(places[inside], (found - STRICTNESS * energy).max(1), out=places[inside])
            better = found > best[inside]
            np.copyto(best[inside], found, where=better)
            np.copyto(which[inside], k, where=better)
        return best, which, places


@functools.cache
def bank() -> Bank:
    """The templates of all emoji, and of all shapes whatever their colour."""
    emoji = np.array([[_centred(difference((kind, None), size, _GROUND)[0]) for kind in EMOJI] for size in _SIZES])
    shapes = np.array([[_centred(coverage(kind, size)[..., None])[0] for kind in SHAPES] for size in _SIZES])
    contrasts = PALETTE - _GROUND
    of_shapes = (shapes**2).sum((2, 3))[..., None] * (contrasts**2).sum(1)  # (sizes, 8, 8)
    energy = np.concatenate([(emoji**2).sum((2, 3, 4)), of_shapes.reshape(len(_SIZES), -1)], axis=1)
    return Bank(_SIZES, np.conj(np.fft.rfft2(emoji)), np.conj(np.fft.rfft2(shapes)), contrasts, energy)


def coarse(images: np.ndarray) -> np.ndarray:
    """Means of squares of `COARSE` pixels: (b, h, w, c) to (b, c, h / 2, w / 2)."""
    b, h, w, c = images.shape
    return images.reshape(b, h // COARSE, COARSE, w // COARSE, COARSE, c).mean((2, 4)).transpose(0, 3, 1, 2)


def _centred(template: np.ndarray) -> np.ndarray:
    """(c, 32, 32): a template (s, s, c) in a coarse picture that is else empty, its centre at the upper left corner."""
    whole, half = np.zeros((1, SIDE, SIDE, template.shape[-1]), np.float32), len(template) // 2
    whole[0, : len(template), : len(template)] = template
    return coarse(np.roll(whole, (-half, -half), (1, 2)))[0]
