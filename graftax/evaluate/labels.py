"""Names beside the rows or above the columns of a grid of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from graftax.evaluate.pictures import grid

GROUND, INK = 96, 235
"""Greys of the margin, the same as between images, and of what is written on it: read on white pages and on black ones."""

SMALLEST, LARGEST = 12, 26
"""Heights of the letters in pixels."""


SIDE = 96
"""Pixels that an image of a grid is drawn in at least."""

WIDTH = 128
"""Likewise where a caption stands below it."""


def scale_of(side: int) -> int:
    """How many times small images, `side` pixels wide, are magnified to be seen in a grid."""
    return max(1, SIDE // side)


def class_columns(images: np.ndarray, names: Sequence[str], rows: int) -> np.ndarray:
    """The first `rows` of images (n, h, w, c) uint8 whose classes come in turn, magnified, a column for each of `names`."""
    shown = images[: len(names) * rows]
    return labelled(grid(shown, len(names), scale=scale_of(images.shape[2])), names, columns=True)


def labelled(image: np.ndarray, names: Sequence[str], *, columns: bool = False) -> np.ndarray:
    """A grid (H, W, c) uint8 with a margin in which `names` stand at the left of its rows, or above its `columns`.

    Rows and columns are equal parts. Names wider than their column are written upwards.
    """
    height, width, channels = image.shape
    part = (width if columns else height) / len(names)
    texts = [_text(name, int(min(LARGEST, max(SMALLEST, part / 3))), channels) for name in names]
    if columns and max(text.shape[1] for text in texts) > part:
        texts = [np.rot90(text) for text in texts]
    room = max(text.shape[0 if columns else 1] for text in texts)
    margin = np.full((room, width, channels) if columns else (height, room, channels), GROUND, np.uint8)
    for i, text in enumerate(texts):
        middle, (h, w) = int((i + 0.5) * part), text.shape[:2]
        top, left = (room - h, middle - w // 2) if columns else (middle - h // 2, room - w)
        _paste(margin, text, top, left)
    return np.concatenate([margin, image], axis=0 if columns else 1)


def captioned(images: Sequence[np.ndarray], captions: Sequence[str], columns: int, scale: int | None = None) -> np.ndarray:
    """Images (h, w, c) uint8 row by row, every pixel `scale` pixels wide (None: small ones are magnified), each with its
    caption below it in as many lines as it needs."""
    times: int = scale or -(-WIDTH // images[0].shape[1])
    width = images[0].shape[1] * times
    wrapped = [_wrapped(caption, width, images[0].shape[2]) for caption in captions]
    room = max(len(each) for each in wrapped)
    tiles = []
    for image, text in zip(images, wrapped, strict=True):
        below = np.full((room, width, image.shape[2]), GROUND, np.uint8)
        _paste(below, text, 0, (width - text.shape[1]) // 2)
        tiles.append(np.concatenate([image.repeat(times, 0).repeat(times, 1), below]))
    return grid(np.stack(tiles), min(columns, len(tiles)), gap=6)


def _wrapped(text: str, width: int, channels: int) -> np.ndarray:
    """(h, w, c) uint8 of a text in centred lines that fit into `width` pixels, as far as its words do."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        lines[-1:] = [longer] if not lines or _text(longer, SMALLEST, 1).shape[1] <= width else [lines[-1], word]
    rows = [_text(line, SMALLEST, channels) for line in lines]
    out = np.full((sum(map(len, rows)), max(width, *(row.shape[1] for row in rows)), channels), GROUND, np.uint8)
    top = 0
    for row in rows:
        _paste(out, row, top, (out.shape[1] - row.shape[1]) // 2)
        top += len(row)
    return out


def _text(text: str, size: int, channels: int) -> np.ndarray:
    """(h, w, c) uint8, with some air around."""
    font = ImageFont.load_default(size)
    left, _, right, _ = map(round, font.getbbox(text))
    image = Image.new("L", (right - left + 8, size + 6), GROUND)
    ImageDraw.Draw(image).text((4 - left, 1), text, fill=INK, font=font)
    return np.repeat(np.asarray(image)[..., None], channels, axis=2)


def _paste(canvas: np.ndarray, text: np.ndarray, top: int, left: int) -> None:
    """Put `text` on `canvas`, what lies beyond it cut off."""
    (height, width), (h, w) = canvas.shape[:2], text.shape[:2]
    y, x = max(top, 0), max(left, 0)
    bottom, right = min(top + h, height), min(left + w, width)
    canvas[y:bottom, x:right] = text[y - top : bottom - top, x - left : right - left]
