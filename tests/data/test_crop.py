import io

import numpy as np
import pytest
from PIL import Image

from graftax.data.crop import centre_crop, decode, pad
from graftax.errors import BadInput


def reference(image, size):
    """ADM's steps, one by one, on a PIL image."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), resample=Image.BOX)
    factor = size / min(image.size)
    image = image.resize((round(image.size[0] * factor), round(image.size[1] * factor)), resample=Image.BICUBIC)
    left, top = (image.size[0] - size) // 2, (image.size[1] - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("shape", [(40, 57), (57, 40), (16, 16), (9, 12), (33, 32), (129, 70), (31, 64)])
def test_centre_crop_is_that_of_adm(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    found = centre_crop(pixels, 16)
    assert found.shape == (16, 16, 3)
    np.testing.assert_array_equal(found, reference(Image.fromarray(pixels), 16))
    grey = centre_crop(pixels[..., :1], 16)
    np.testing.assert_array_equal(grey[..., 0], reference(Image.fromarray(pixels[..., 0]), 16))


def test_pad_centres_and_refuses_larger_images():
    image = np.arange(1, 13, dtype=np.uint8).reshape(2, 3, 2)
    out = pad(image, 5)
    np.testing.assert_array_equal(out[1:3, 1:4], image)
    assert out.sum() == image.sum()
    with pytest.raises(BadInput, match="6x3 pixels do not fit size 5"):
        pad(np.zeros((6, 3, 1), np.uint8), 5)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
def test_files_of_every_mode_become_rgb_or_luminance(mode, tmp_path):
    picture = Image.new("RGB", (5, 4), (200, 10, 60)).convert(mode)
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    picture.save(path)
    pixels = decode(path, "x")
    assert pixels.shape == (4, 5, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(path).convert("RGB")))
    assert decode(path, "x", channels=1).shape == (4, 5, 1)


def test_damaged_files_are_refused_by_name():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "JPEG")
    for data in (file.getvalue()[:2000], b"no image", b""):
        with pytest.raises(BadInput, match=r"image somewhere/x\.jpg: cannot be read"):
            decode(io.BytesIO(data), "somewhere/x.jpg")
