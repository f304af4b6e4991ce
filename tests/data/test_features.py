"""Features beside images: written once, read in the order of the training's images, of these alone."""

import dataclasses

import numpy as np
import pytest

from graftax.data.config import DataConfig
from graftax.data.features import open_features, write_features
from graftax.data.pixels import images
from graftax.data.source import load_source
from graftax.errors import BadInput

CONFIG = DataConfig(size=28, limit=50)


def encoder(pixels):
    """Two tokens of an image: its mean, and its first row's."""
    assert (pixels.dtype, pixels.shape[3]) == (np.uint8, 3)
    found = pixels.astype(np.float32)
    return np.stack([found.mean((1, 2)), found[:, 14].mean(1)], axis=1)  # (b, 2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    write_features(folder, images.load(CONFIG).raw_train, 28, encoder, "means", batch=16, dtype="float32")
    return str(folder)


def test_batches_have_the_rows_of_their_images(folder):
    data = images.load(dataclasses.replace(CONFIG, features=folder))
    batch = next(data.batches(8, seed=3))
    pixels = np.round((batch["image"] + 1) * 127.5).astype(np.uint8).repeat(3, axis=3)
    np.testing.assert_allclose(batch["features"], encoder(pixels), rtol=1e-6)
    plain = next(images.load(CONFIG).batches(8, seed=3))
    np.testing.assert_array_equal(batch["image"], plain["image"])
    assert "features" not in plain
    state = data.batches(8, seed=3).state()
    assert "means" in state["features"]


def test_flipped_images_have_the_features_of_their_mirror_images(tmp_path):
    def edges(pixels):
        return pixels[:, :, [3, -4]].astype(np.float32).mean((1, 3))[..., None]  # (b, 2, 1)

    config = dataclasses.replace(CONFIG, transform="flip", features=str(tmp_path))
    write_features(tmp_path, images.load(CONFIG).raw_train, 28, edges, "edges", mirrored=True, dtype="float32")
    batch, plain = (next(images.load(one).batches(16, 1)) for one in (config, CONFIG))
    flipped = np.any(batch["image"] != plain["image"], axis=(1, 2, 3))
    assert 0 < flipped.sum() < 16
    pixels = np.round((batch["image"] + 1) * 127.5).astype(np.uint8).repeat(3, axis=3)
    np.testing.assert_allclose(batch["features"], edges(pixels), rtol=1e-6)


def test_features_of_other_images_are_refused(folder, tmp_path):
    with pytest.raises(BadInput, match="of other images than 'fashion_mnist', or of another part of it"):
        images.load(dataclasses.replace(CONFIG, features=folder, limit=40)).batches(8, 0)
    with pytest.raises(BadInput, match=r"expected features\.npy and features\.json"):
        open_features(tmp_path)
    with pytest.raises(BadInput, match="transform: got 'flip', expected 'none': the features are not"):
        images.load(dataclasses.replace(CONFIG, features=folder, transform="flip")).batches(8, 0)
    with pytest.raises(BadInput, match="no images"):
        write_features(tmp_path, load_source("fashion_mnist").take(np.arange(0)), 28, encoder, "none")
