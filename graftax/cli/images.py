"""From a `DataConfig` to arrays: images or latents, training and held-out, and the way back to pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from graftax.cli.schema import DataConfig
from graftax.data.pipeline import Batches, batches
from graftax.data.source import ImageSet, load_source, prepare
from graftax.errors import BadInput
from graftax.spec import ModelSpec


@dataclass(frozen=True)
class Images:
    """Arrays (n, h, w, c) float32 as the model sees them, labels (n,) int32; `test` is empty where nothing is held out."""

    config: DataConfig
    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]

    def batches(self, batch_size: int, seed: int) -> Batches:
        """Endless training batches of this process's share."""
        import jax

        # Latents of mirrored images are in `train` already: mirroring latents is not the same thing.
        transform = self.config.transform if self.config.latents == "none" else "none"
        return batches(self.train, self.train_labels, batch_size, seed, jax.process_index(), jax.process_count(), transform)


def load(config: DataConfig) -> Images:
    """Read, prepare and, where latents are asked for, encode. Raises `BadInput` on anything that does not fit."""
    encode = encoder(config)
    train = load_source(config.source, "train", config.held_out)
    if config.limit is not None:
        train = train.take(np.arange(min(config.limit, len(train))))
    held_out = config.source == "fashion_mnist" or config.held_out > 0
    test = load_source(config.source, "test", config.held_out) if held_out else train.take(np.arange(0))
    pixels, labels = _pixels(train, config), train.labels
    if config.latents != "none" and config.transform == "flip":
        pixels, labels = np.concatenate([pixels, pixels[:, :, ::-1]]), np.concatenate([labels, labels])
    return Images(
        config, encode(pixels), labels, encode(_pixels(test, config)), test.labels, train.num_classes, train.class_names
    )


def _pixels(images: ImageSet, config: DataConfig) -> np.ndarray:
    return prepare(images.images, config.size)


def check_fit(images: Images, spec: ModelSpec) -> None:
    """Raise `BadInput` unless the arrays are what a model of `spec` takes."""
    side, c = spec.input_size, spec.in_channels
    if images.train.shape[1:] != (side, side, c):
        raise BadInput(f"data: images are {images.train.shape[1:]} for the model, expected {(side, side, c)}")
    if images.num_classes > spec.num_classes:
        raise BadInput(f"data: {images.num_classes} classes, but the model knows {spec.num_classes}")
    if not len(images.train):
        raise BadInput("data: no training images, expected at least one")


def encoder(config: DataConfig) -> Callable[[np.ndarray], np.ndarray]:
    """The function from pixels (n, s, s, c) in [-1, 1] to what the model sees."""
    if config.latents == "none":
        return lambda pixels: pixels
    from graftax.cli import nets
    from graftax.models import autoencoder

    spec, params = nets.load_autoencoder(config.latents)
    return lambda pixels: nets.in_chunks(autoencoder.encode, spec, params, pixels, spec.latent_shape)


def decoder(config: DataConfig) -> Callable[[np.ndarray], np.ndarray]:
    """The function from the model's arrays (n, h, w, c) to pixels in [-1, 1]."""
    if config.latents == "none":
        return lambda arrays: np.clip(arrays, -1, 1)
    from graftax.cli import nets
    from graftax.models import autoencoder

    spec, params = nets.load_autoencoder(config.latents)
    return lambda arrays: nets.in_chunks(autoencoder.decode, spec, params, arrays, spec.image_shape)
