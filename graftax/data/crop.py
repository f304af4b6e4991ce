"""From an image file of any size to a square: the centre crop of ADM, or a border around images that are small enough."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from graftax.errors import BadInput


def decode(file: Path | IO[bytes], name: str, channels: int = 3) -> np.ndarray:
    """The image in a JPEG, PNG, WebP or BMP file: (h, w, channels) uint8, as RGB or (1 channel) luminance.

    Raises `BadInput` with `name` where it is no image, or damaged.
    """
    try:
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(f"image {name}: cannot be read ({error})") from None
    return pixels.reshape(*pixels.shape[:2], channels)


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The central square of an image (h, w, c) uint8, its shorter side scaled to `size`: (size, size, c) uint8.

    As in ADM (guided-diffusion, `center_crop_arr`), which DiT and the grafting paper train on: the image is halved by box
    filtering while its shorter side is at least twice `size`, then resized bicubically, then cut. `c` is 1 or 3.
    """
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    sides = round(picture.width * scale), round(picture.height * scale)
    pixels = np.asarray(picture.resize(sides, Image.Resampling.BICUBIC))  # (h, w) or (h, w, c)
    top, left = ((side - size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size].reshape(size, size, -1)


def pad(image: np.ndarray, size: int) -> np.ndarray:
    """An image (h, w, c) uint8 in the centre of a black square: (size, size, c). Raises `BadInput` if it is larger."""
    h, w, c = image.shape
    if h > size or w > size:
        raise BadInput(f"image to prepare: {h}x{w} pixels do not fit size {size}, expected at most {size}x{size}")
    top, left = (size - h) // 2, (size - w) // 2
    out = np.zeros((size, size, c), np.uint8)
    out[top : top + h, left : left + w] = image
    return out


FITS = {"adm centre crop": centre_crop, "centred on black": pad}
"""Ways to make images square, by the name that a latent set's manifest gives them."""
