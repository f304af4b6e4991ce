"""The judge: reads a picture back into things, each with its kind, colour, place and size.

A picture is explained thing by thing. Of all things at all places, the one that takes most away from the picture's squared
difference to its ground is found (by correlation, coarsely, then measured finely) and subtracted, until no thing explains
enough of itself: matching pursuit (Mallat & Zhang, 1993) over the sprites that scenes are made of. A thing may be a third
paler than its sprite, blurred and noisy; how much of it there is, is told (`Reading.matches`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.lib.stride_tricks import as_strided

from graftax.data.scenes.vocabulary import COLOURS, SHAPES
from graftax.data.scenes.world import GROUND, SIDE, Thing
from graftax.errors import BadInput
from graftax.evaluate.scenes import templates
from graftax.evaluate.scenes.templates import COARSE, LOOKS, PALETTE, STRENGTH, Look, bank, coarse, gain, inside, planes

JUDGE = "scenes judge 1"
"""Name and version: another version may read another thing."""

LEAST_MATCH = 0.5
"""Share of a thing's squared difference to the ground that must be there for it to count."""

_ROUNDS = 8  # at most, of explaining
_PLACES, _APART = 4, 5  # places tried in a round, and how far apart they are at least, in coarse pixels
_TOUCH, _UPON = 0.1, 0.5  # overlaps from which on two things disturb each other, and are one
_KINDS = 4  # likeliest kinds at a place, that are measured
_NEAR = 2  # pixels around a coarse place, in which things are measured
_AROUND = 2 * _NEAR + 1
_AIR = 3  # pixels around a thing's square that should be as if it were not there
_CHUNK = 8  # pictures correlated at once: what is computed of them stays in a processor's cache


@dataclass(frozen=True)
class Reading:
    """What the judge sees in a picture.

    Attributes:
        things: clearest first.
        matches: of each, the share of its difference to the ground that is there, at most 1.
    """

    things: tuple[Thing, ...]
    matches: tuple[float, ...]


def read(images: np.ndarray) -> list[Reading]:
    """What is in each of the pictures (b, 64, 64, 3), uint8 or float in [-1, 1]. Raises `BadInput` on others."""
    if images.ndim != 4 or images.shape[1:] != (SIDE, SIDE, 3):
        raise BadInput(f"pictures of scenes: {images.dtype}{images.shape}, expected (b, {SIDE}, {SIDE}, 3)")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise BadInput(f"pictures of scenes: {images.dtype}, expected uint8 or floats in [-1, 1]")
    pixels = images.astype(np.float32)
    if not np.isfinite(pixels).all():
        raise BadInput("pictures of scenes: some have values that are not finite")
    if images.dtype != np.uint8:
        pixels = np.clip((pixels + 1) * 127.5, 0, 255)
    starts = range(0, len(pixels), _CHUNK)
    return [reading for start in starts for reading in _read_chunk(pixels[start : start + _CHUNK])]


def _read_chunk(pixels: np.ndarray) -> list[Reading]:
    """Readings of pictures (b, 64, 64, 3) from 0 to 255."""
    grounds = np.median(pixels, axis=(1, 2))  # (b, 3)
    # Of each picture channel by channel in memory, so that windows are copied in long runs.
    rest = np.moveaxis(np.moveaxis(pixels, -1, 1) - grounds[..., None, None], 1, -1)
    grounds = np.clip(grounds, *GROUND)  # another one is not of the world: a fault of all colours, not of the ground
    found: list[list[_Sight]] = [[] for _ in pixels]
    going = np.arange(len(pixels))  # the pictures in which something may be left
    for _ in range(_ROUNDS):
        small = coarse(rest[going])  # (b, 3, 32, 32)
        worth = (small**2).sum((1, 2, 3)) > bank().least
        going = going[worth]
        if not len(going):
            break
        places = _places(small[worth])
        for i, here in zip(going, places, strict=True):
            _explain(rest[i], [_measure(rest[i], grounds[i], place) for place in here], found[i])
        going = going[[bool(here) for here in places]]
    return [_reading(*each) for each in zip(rest, found, strict=True)]


def _reading(rest: np.ndarray, found: list[_Sight]) -> Reading:
    """The things of which enough is there and that stand out, as all that is left in and around their squares tells."""
    seen = []
    for sight in found:
        left, top = (round(at - sight.thing.size / 2) - _AIR for at in (sight.thing.x, sight.thing.y))
        right, bottom = (start + len(sight.alpha) + 2 * _AIR for start in (left, top))
        lacking = (rest[max(top, 0) : bottom, max(left, 0) : right] ** 2).sum()
        seen.append((1 - float(lacking / (sight.template**2).sum()), sight.thing))
    clear = sorted((each for each in seen if each[0] >= LEAST_MATCH), key=lambda each: -each[0])
    return Reading(tuple(thing for _, thing in clear), tuple(match for match, _ in clear))


@dataclass(frozen=True)
class _Place:
    """Where a thing may be, in pixels, and of which kinds it may be, with its side: likeliest first."""

    x: int
    y: int
    kinds: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class _Sight:
    """A thing that may be there, how it differs from the ground (s, s, 3), what it covers (s, s, 1), and its match."""

    thing: Thing
    template: np.ndarray
    alpha: np.ndarray
    match: float

    def window(self, rest: np.ndarray) -> np.ndarray:
        """The part (s, s, 3) of a picture, as a view, where the thing is."""
        left, top = (round(at - self.thing.size / 2) for at in (self.thing.x, self.thing.y))
        return rest[top : top + len(self.alpha), left : left + len(self.alpha)]

    def overlap(self, other: _Sight) -> float:
        """By how much of their mean size two things are closer than side by side: 1 where their centres are one."""
        one, two = self.thing, other.thing
        return 1 - 2 * max(abs(one.x - two.x), abs(one.y - two.y)) / (one.size + two.size)


def _places(rest: np.ndarray) -> list[list[_Place]]:
    """The likeliest places, at most `_PLACES`, in each of the coarse pictures (b, 3, 32, 32); none where nothing is left."""
    shares, most = bank().gains(rest)
    found = []
    for i, places in enumerate(most):  # (32, 32)
        found.append([])
        while places.max() > 0 and len(found[-1]) < _PLACES:
            y, x = (int(at) for at in np.unravel_index(places.argmax(), places.shape))
            places[max(y - _APART, 0) : y + _APART + 1, max(x - _APART, 0) : x + _APART + 1] = -np.inf
            found[-1].append(_Place(x * COARSE, y * COARSE, _likeliest([each[i] for each in shares], y, x)))
    return found


def _likeliest(shares: list[np.ndarray], y: int, x: int) -> tuple[tuple[str, int], ...]:
    """The `_KINDS` of largest gain around a place, with their sizes, by the shares of `Bank.gains` (looks, i, i)."""
    best = np.full(bank().energy.shape, -np.inf, np.float32)  # (sizes, looks)
    for k, (size, share) in enumerate(zip(bank().sizes, shares, strict=True)):
        first = inside(size).start
        near = share[:, max(y - 1 - first, 0) : max(y + 2 - first, 0), max(x - 1 - first, 0) : max(x + 2 - first, 0)]
        if near.size:
            best[k] = near.reshape(len(LOOKS), -1).max(1)
    best = gain(best) * bank().energy
    kinds: dict[str, int] = {}
    for look in np.argsort(-best.max(0)):
        kinds.setdefault(LOOKS[look][0], bank().sizes[best[:, look].argmax()])
        if len(kinds) == _KINDS:
            break
    return tuple(kinds.items())


def _measure(rest: np.ndarray, ground: np.ndarray, place: _Place) -> _Sight:
    """The thing near a place that explains most, more or less strongly."""
    found: list[tuple[int, int, int, Look]] = []  # of what is measured: size, left, top, look
    products, energies, contrasts = [], [], PALETTE - ground
    for size in sorted({about + more for _, about in place.kinds for more in (-2, 0, 2)}):
        left, top = (min(max(at - size // 2 - _NEAR, 0), SIDE - size - 2 * _NEAR) for at in (place.x, place.y))
        windows = _windows(rest[top:, left:], size)
        for kind in (kind for kind, about in place.kinds if abs(about - size) <= 2):
            shared, energy = _shared(windows, kind, size, ground, contrasts)  # (places, colours), (colours,)
            products.append(shared)
            energies.append(energy)
            found += [(size, left, top, (kind, colour)) for colour in (COLOURS if kind in SHAPES else (None,))]
    shared, energy = np.concatenate(products, 1), np.concatenate(energies)  # (places, found), (found,)
    strength = np.minimum(np.maximum(shared / energy, STRENGTH[0]), STRENGTH[1])
    at, best = divmod(int((strength * (2 * shared - strength * energy)).argmax()), len(found))
    (row, column), (size, left, top, look) = divmod(at, _AROUND), found[best]
    thing = Thing(*look, left + column + size / 2, top + row + size / 2, float(size))
    return _sight(rest, ground, thing, float(strength[at, best]))


def _windows(part: np.ndarray, size: int) -> np.ndarray:
    """All squares (5, 5, 3, s s) of `part` (h, w, 3), rows and columns first, that begin less than `_AROUND` pixels from its
    corner: a view of what is copied once for each column."""
    rows = size + 2 * _NEAR
    down, right, channel = part.strides
    strips = as_strided(part, (_AROUND, 3, rows, size), (right, channel, down, right)).reshape(_AROUND, 3, -1)
    column, plane, item = strips.strides
    return as_strided(strips, (_AROUND, _AROUND, 3, size**2), (size * item, column, plane, item))


def _shared(
    windows: np.ndarray, kind: str, size: int, ground: np.ndarray, contrasts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """<D, T> (places, colours) of windows D (5, 5, 3, s s) and a kind in each of its colours, and |T|^2 (colours,).

    `contrasts` (8, 3): of the colours to the `ground` (3,).
    """
    colour, alpha, covered = planes(kind, size)
    if kind in SHAPES:
        return (windows @ alpha).reshape(-1, 3) @ contrasts.T, covered * (contrasts * contrasts).sum(1)
    template = colour - ground[:, None] * alpha  # (3, s s)
    shared = np.sum([windows[:, :, c] @ template[c] for c in range(3)], axis=0)  # (5, 5)
    return shared.reshape(-1, 1), (template**2).sum().reshape(1)


def _sight(rest: np.ndarray, ground: np.ndarray, thing: Thing, strength: float) -> _Sight:
    template, alpha = templates.difference((thing.kind, thing.colour), round(thing.size), ground)
    sight = _Sight(thing, strength * template, alpha, 0.0)
    lacking = (alpha * (sight.window(rest) - sight.template) ** 2).sum()
    return replace(sight, match=1 - float(lacking / (alpha * sight.template**2).sum()))


def _explain(rest: np.ndarray, sights: list[_Sight], found: list[_Sight]) -> None:
    """Take the clearest things away from `rest` (64, 64, 3), and note those of which there is enough.

    What touches a clearer one waits for the next round. Where nothing else is left, what is no thing, or a second one upon
    another, is blotted out, so that it does not come again.
    """
    sights = sorted(sights, key=lambda each: -each.match)
    good = [sight.match >= LEAST_MATCH and not any(sight.overlap(other) > _UPON for other in found) for sight in sights]
    for i, sight in enumerate(sights):
        if any(sight.overlap(other) > _TOUCH for other in sights[:i]):
            continue
        if good[i]:
            found.append(sight)
            sight.window(rest)[:] -= sight.template
        elif not any(good):
            sight.window(rest)[:] *= 1 - sight.alpha
