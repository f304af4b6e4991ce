"""The judge on scenes whose truth is known, as they are and as an autoencoder or a hasty sampler might draw them."""

import io
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from graftax.data.scenes import Scene, Thing, render, scene
from graftax.errors import BadInput
from graftax.evaluate.scenes.reading import Reading, read
from graftax.evaluate.scenes.templates import LEAST_SHARE, STRICTNESS, gain

NEAR = 3  # pixels: a fifth of the smallest thing


def blurred(images: np.ndarray) -> np.ndarray:
    """Means with weights 1/4, 1/2, 1/4 along both axes, twice: a Gaussian of one pixel."""
    found = images.astype(np.float32)
    for axis in (1, 2, 1, 2):
        around = np.pad(found, [(1, 1) if a == axis else (0, 0) for a in range(4)], "edge")
        parts = (np.take(around, range(at, at + 64), axis) for at in range(3))
        found = sum(weight * part for weight, part in zip((0.25, 0.5, 0.25), parts, strict=True))
    return found


def halved(images: np.ndarray) -> np.ndarray:
    """Down to 32 pixels and up again."""
    small = [Image.fromarray(image).resize((32, 32), Image.Resampling.BOX) for image in images]
    return np.stack([np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)) for image in small])


def compressed(images: np.ndarray) -> np.ndarray:
    """As JPEG of quality 25."""
    found = []
    for image in images:
        Image.fromarray(image).save(file := io.BytesIO(), format="JPEG", quality=25)
        found.append(np.asarray(Image.open(file)))
    return np.stack(found)


def noisy(images: np.ndarray) -> np.ndarray:
    """With 5 % of noise."""
    return images + np.random.default_rng(0).normal(0, 12.75, images.shape)


def shifted(images: np.ndarray) -> np.ndarray:
    """Of 8 % less contrast, each channel of each picture a little brighter or darker."""
    return images * 0.92 + np.random.default_rng(1).normal(0, 8, (len(images), 1, 1, 3))


DAMAGE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda images: images,
    "blur": blurred,
    "half": halved,
    "jpeg": compressed,
    "noise": noisy,
    "shift": shifted,
    "half, blur, shift and noise": lambda images: noisy(shifted(blurred(halved(images)))),
}


def damaged(images: np.ndarray, name: str) -> np.ndarray:
    """(n, 64, 64, 3) uint8 after one of `DAMAGE`."""
    return np.clip(np.round(DAMAGE[name](images)), 0, 255).astype(np.uint8)


def is_right(truth: Scene, reading: Reading) -> bool:
    """Whether every thing's kind, colour and place are read, and nothing else is."""
    rest = list(reading.things)
    for thing in truth.things:
        alike = [one for one in rest if (one.kind, one.colour) == (thing.kind, thing.colour)]
        if not alike:
            return False
        nearest = min(alike, key=lambda one: max(abs(one.x - thing.x), abs(one.y - thing.y)))
        if max(abs(nearest.x - thing.x), abs(nearest.y - thing.y)) > NEAR:
            return False
        rest.remove(nearest)
    return not rest


def share_right(count: int, damage: str) -> float:
    truths = [scene(i, "heldout", seed=5) for i in range(count)]
    readings = read(damaged(np.stack([render(truth) for truth in truths]), damage))
    return float(np.mean([is_right(*pair) for pair in zip(truths, readings, strict=True)]))


@pytest.mark.parametrize("damage", [pytest.param("none", marks=pytest.mark.slow), "half, blur, shift and noise"])
def test_scenes_of_held_out_combinations_are_read(damage: str) -> None:
    assert share_right(100, damage) >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_scenes_of_held_out_combinations_are_read_however_they_are_drawn(damage: str) -> None:
    assert share_right(1500, damage) >= 0.98


def test_what_shows_nothing_is_read_as_nothing() -> None:
    rng = np.random.default_rng(0)
    blank = np.full((2, 64, 64, 3), 244, np.uint8)
    blank[1] = 128
    slope = np.linspace(225, 252, 64)[None, :, None, None] * np.ones((1, 1, 64, 3))
    static = rng.integers(0, 256, (4, 64, 64, 3))
    for images in (blank, noisy(blank), slope, static):
        readings = read(np.clip(images, 0, 255).astype(np.uint8))
        assert not any(reading.things for reading in readings)


def test_places_that_are_not_looked_at_explain_nothing() -> None:
    shares = np.linspace(-2, LEAST_SHARE, 50, dtype=np.float32)
    assert (gain(shares) <= STRICTNESS + 1e-6).all()
    assert gain(np.float32(LEAST_SHARE + 0.01)) > STRICTNESS
    np.testing.assert_allclose(gain(np.float32([0.8, 1.0])), np.float32([0.64, 1.0]), rtol=1e-6)  # at its own strength


def test_half_a_thing_is_none_and_another_colour_is_no_other_thing() -> None:
    cat = render(Scene(scene(0).caption, (Thing("cat", None, 32.0, 32.0, 28.0),), (244, 244, 244)))
    half = cat.copy()
    half[:, 32:] = 244
    assert [thing.kind for thing in read(cat[None])[0].things] == ["cat"]
    assert not [thing for thing in read(half[None])[0].things if thing.kind == "cat"]
    assert not [thing for thing in read(cat[None, ..., ::-1])[0].things if thing.kind == "cat"]


def test_floats_and_bytes_are_read_alike_whatever_is_beside_them() -> None:
    images = np.stack([render(scene(i)) for i in range(20)])
    together, floats = read(images), read(images.astype(np.float32) / 127.5 - 1)
    alone = [read(image[None])[0] for image in images]
    for one, two, three in zip(together, floats, alone, strict=True):
        assert one.things == two.things == three.things
        np.testing.assert_allclose(one.matches, three.matches, atol=1e-4)
    assert read(images[:0]) == []


def test_counts_do_not_depend_on_order() -> None:
    truths = [scene(i) for i in range(40)]
    for truth, reading in zip(truths, read(np.stack([render(truth) for truth in truths])), strict=True):
        seen = Counter((thing.kind, thing.colour) for thing in reading.things)
        assert seen == Counter((thing.kind, thing.colour) for thing in truth.things)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 32, 32, 3), np.uint8), r"uint8\(2, 32, 32, 3\), expected \(b, 64, 64, 3\)"),
        (np.zeros((64, 64, 3), np.uint8), r"uint8\(64, 64, 3\)"),
        (np.zeros((1, 64, 64, 3), np.int32), r"int32, expected uint8 or floats"),
        (np.full((1, 64, 64, 3), np.nan), "not finite"),
    ],
)
def test_other_pictures_are_refused(images: np.ndarray, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read(images)
