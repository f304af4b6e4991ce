"""Small sets of every kind: a folder of pictures, a prepared tensorflow-datasets set, a latent set."""

import numpy as np
import pytest
from PIL import Image
from tiny_set import TinySet
from toy_latents import CLASSES, write_latents


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Path of FOLDER/CLASS/i.png: 7, 8 and 9 random images of different sizes."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for c, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for i in range(7 + c):
            pixels = rng.integers(0, 256, (20 + i, 27 - i, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    (folder / "README.txt").write_text("passed over")
    (folder / "ant" / "notes.txt").write_text("passed over")
    return folder


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory):
    """Data folder in which `tiny_set` is prepared as array_record."""
    folder = tmp_path_factory.mktemp("tfds")
    TinySet(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def latent_folder(tmp_path):
    """Path of a latent set of 25 records in 3 shards."""
    write_latents(tmp_path / "latents")
    return tmp_path / "latents"
