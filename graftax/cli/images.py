"""From a `DataConfig` to arrays: images or latents, training and held-out, and the way back to pixels."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graftax.cli import nets
from graftax.cli.schema import DataConfig
from graftax.data.pipeline import Batches, batches
from graftax.data.source import FASHION_MNIST, ImageSet, load_source, prepare
from graftax.errors import BadInput
from graftax.models import autoencoder
from graftax.spec import ModelSpec


@dataclass(frozen=True)
class Images:
    """A training and a held-out set (empty where nothing is held out), prepared for a model when first asked for.

    `raw_train` and `raw_test` are as read: uint8 images, or float latents that were given. Everything that can be wrong
    is found by `load` and `check_fit`, before an encoder runs.
    """

    config: DataConfig
    raw_train: ImageSet
    raw_test: ImageSet

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (h, w, c) of one image as the model sees it."""
        if self.config.latents == "given":
            return self.raw_train.images.shape[1:]
        if self.config.latents == "none":
            return self.config.size, self.config.size, self.raw_train.images.shape[3]
        return nets.load_autoencoder(self.config.latents)[0].latent_shape

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.raw_train.num_classes

    @property
    def held_out(self) -> bool:
        """Whether there is a held-out set."""
        return len(self.raw_test) > 0

    @functools.cached_property
    def train(self) -> np.ndarray:
        """Training images (n, h, w, c) float32 as the model sees them."""
        return self._seen(self.raw_train)

    @functools.cached_property
    def test(self) -> np.ndarray:
        """Held-out images, likewise."""
        return self._seen(self.raw_test)

    @property
    def train_labels(self) -> np.ndarray:
        """Labels (n,) int32 of `train`."""
        return self.raw_train.labels

    @property
    def test_labels(self) -> np.ndarray:
        """Labels (n,) int32 of `test`."""
        return self.raw_test.labels

    def pixels(self, images: ImageSet) -> np.ndarray:
        """uint8 images as (n, size, size, c) float32 in [-1, 1]."""
        return prepare(images.images, self.config.size)

    def batches(self, batch_size: int, seed: int) -> Batches:
        """Endless training batches of this process's share."""
        import jax

        share = jax.process_index(), jax.process_count()
        return batches(self.train, self.train_labels, batch_size, seed, *share, transform=self.config.transform)

    def _seen(self, images: ImageSet) -> np.ndarray:
        if self.config.latents == "given":
            return images.images.astype(np.float32)
        if self.config.latents == "none":
            return self.pixels(images)
        spec, params = nets.load_autoencoder(self.config.latents)
        return nets.in_chunks(autoencoder.encode, spec, params, self.pixels(images), spec.latent_shape)


def load(config: DataConfig) -> Images:
    """Read both sets. Raises `BadInput` on files and settings that do not fit together."""
    if config.latents == "given":
        train, test = _given_latents(config)
    else:
        train = load_source(config.source, "train", config.held_out)
        held_out = config.source == FASHION_MNIST or config.held_out > 0
        test = load_source(config.source, "test", config.held_out) if held_out else train.take(np.arange(0))
    if config.limit is not None:
        train = train.take(np.arange(min(config.limit, len(train))))
    if config.latents not in ("none", "given"):
        _check_encoder(config, train)
    return Images(config, train, test)


def check_fit(images: Images, spec: ModelSpec) -> None:
    """Raise `BadInput` unless the arrays are what a model of `spec` takes."""
    expected = (spec.input_size, spec.input_size, spec.in_channels)
    if images.shape != expected:
        raise BadInput(f"data: images are {images.shape}, the model takes {expected}")
    if images.num_classes > spec.num_classes:
        raise BadInput(f"data: {images.num_classes} classes, but the model knows {spec.num_classes}")


def decoder(latents: str) -> Callable[[np.ndarray], np.ndarray]:
    """From a model's arrays (n, h, w, c) to pixels in [-1, 1]: for "none", "demo" or an autoencoder's folder."""
    if latents == "none":
        return lambda arrays: np.clip(arrays, -1, 1)
    spec, params = nets.load_autoencoder(latents)
    return lambda arrays: nets.in_chunks(autoencoder.decode, spec, params, arrays, spec.image_shape)


def _check_encoder(config: DataConfig, train: ImageSet) -> None:
    spec, _ = nets.load_autoencoder(config.latents)
    shape = (config.size, config.size, train.images.shape[3])
    if spec.image_shape != shape:
        raise BadInput(
            f"data.latents {config.latents!r}: the autoencoder takes images {spec.image_shape}, these are {shape}"
        )


def _given_latents(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    """Training and held-out share of an `.npz` with `latents` (n, h, w, c) float and `labels` (n,), as `sample` writes."""
    path = Path(config.source)
    if not path.is_file():
        raise BadInput(f"latents {str(path)!r}: no such file, expected an .npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            latents, labels = file["latents"], file["labels"]
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError, AttributeError, TypeError) as error:
        raise BadInput(f"latents {path}: {error}, expected an .npz of plain arrays 'latents' and 'labels'") from None
    if latents.ndim != 4 or not len(latents) or not np.issubdtype(latents.dtype, np.floating):
        raise BadInput(f"latents {path}: {latents.dtype}{latents.shape}, expected floats (n >= 1, h, w, c)")
    if labels.shape != latents.shape[:1] or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise BadInput(f"latents {path}: labels {labels.dtype}{labels.shape}, expected integers from 0, ({len(latents)},)")
    classes = int(labels.max()) + 1
    names = tuple(f"class {c}" for c in range(classes))
    whole = ImageSet(latents, labels.astype(np.int32), path.stem, classes, names)
    order = np.random.default_rng(0).permutation(len(latents))
    cut = round(len(latents) * config.held_out)
    return whole.take(np.sort(order[cut:])), whole.take(np.sort(order[:cut]))
