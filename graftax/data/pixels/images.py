"""From a `DataConfig` to batches: images or latents, training and held-out, and the way back to pixels."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from graftax.data.config import DataConfig
from graftax.data.features import NAME as FEATURES
from graftax.data.features import WithFeatures, open_features
from graftax.data.latents import LatentSet, is_latent_set
from graftax.data.opening import at_hand, open_any, part
from graftax.data.pipeline import Arrays, Batches, Pixels, Reader, read_threads, stream, whole
from graftax.data.scenes.memory import HELD_OUT, SCENES, TRAINED, scenes_in_memory
from graftax.data.source import AGAINST, FASHION_MNIST, ImageSet, Records, load_source, prepare, require_npz, split_indices
from graftax.data.text.captions import CaptionedImages
from graftax.data.text.store import Texts, TextStore, check_text, open_store
from graftax.errors import BadInput
from graftax.nets import autoencoder, small
from graftax.spec import ModelSpec

Source = Records | LatentSet


@dataclass(frozen=True)
class Images:
    """A training and a held-out set (empty where nothing is held out), prepared for a model when first asked for.

    Folders, tensorflow-datasets and latent sets are read as `batches` asks for them; `train` and `test` are whole arrays,
    whatever the source. Settings that do not fit are found by `load` and `check_fit`, before an encoder runs.

    Attributes:
        config: what was asked for.
        raw_train: as read: uint8 images, or latents that were given.
        raw_test: likewise, held out.
        note: what became of a subset, in words; "" without one.
        store: of the captions; None for images with classes.
    """

    config: DataConfig
    raw_train: Source
    raw_test: Source
    note: str = ""
    store: TextStore | None = None

    @property
    def described(self) -> str:
        """What a training sees, in words."""
        part = f", {self.config.subset}" if self.config.subset else ""
        return f"{self.config.source}{part}, {len(self.raw_train):,} images"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (h, w, c) of one image as the model sees it."""
        if isinstance(self.raw_train, LatentSet):
            return self.raw_train.manifest.latent_shape
        if self.config.latents == "given":
            return _in_memory(self.raw_train).images.shape[1:]
        if self.config.latents == "none":
            return self.config.size, self.config.size, self.raw_train.channels
        return small.load_autoencoder(self.config.latents)[0].latent_shape

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

    @functools.cached_property
    def heldout(self) -> dict[str, np.ndarray] | None:
        """All held-out images as one batch, with labels, or text and its mask; None where nothing is held out."""
        if not self.held_out:
            return None
        if isinstance(self.raw_test, LatentSet | CaptionedImages):
            return whole(self._reader(self.raw_test, "none"))
        return {"image": self.test, **conditions_of(self.raw_test)}

    @property
    def train_labels(self) -> np.ndarray:
        """Labels (n,) int32 of `train`."""
        return self.raw_train.labels

    @property
    def test_labels(self) -> np.ndarray:
        """Labels (n,) int32 of `test`."""
        return self.raw_test.labels

    def pixels(self, images: Source) -> np.ndarray:
        """uint8 images as (n, size, size, c) float32 in [-1, 1]. Raises `BadInput` where they are latents."""
        if isinstance(images, LatentSet):
            raise BadInput(f"data.source {self.config.source!r}: a latent set, expected images")
        if isinstance(images, ImageSet):
            return prepare(images.images, self.config.size)
        return whole(Pixels(images, self.config.size))["image"]

    def batches(self, batch_size: int, seed: int) -> Batches:
        """Endless training batches of this process's share."""
        import jax

        share, transform = (jax.process_index(), jax.process_count()), self.config.transform
        if isinstance(self.raw_train, ImageSet):
            arrays = {"image": self.train, **conditions_of(self.raw_train)}
            if (against := self.raw_train.against) is not None:
                arrays[AGAINST] = against
            return stream(self._with_features(Arrays(arrays, transform)), batch_size, seed, *share)
        reader = self._with_features(self._reader(self.raw_train, transform))
        return stream(reader, batch_size, seed, *share, threads=read_threads())

    @property
    def besides(self) -> tuple[str, ...]:
        """Arrays that batches have besides images and conditions."""
        against = isinstance(self.raw_train, ImageSet) and self.raw_train.against is not None
        return (*([AGAINST] if against else []), *([FEATURES] if self.config.features is not None else []))

    def _with_features(self, reader: Reader) -> Reader:
        """A reader of the training images, with their features where the config names some."""
        if self.config.features is None:
            return reader
        features, train = open_features(self.config.features), self.raw_train
        if features.data == train.digest:
            return WithFeatures(reader, features, np.arange(len(train)), self.config.transform)
        if isinstance(train, LatentSet) and features.data == getattr(train.manifest, "records", None):
            return WithFeatures(reader, features, train.numbers, self.config.transform)
        named = f"features {self.config.features}"
        raise BadInput(f"{named}: of other images than {self.config.source!r}, or of another part of it")

    def _reader(self, images: Records | LatentSet, transform: str) -> Reader:
        """The reader of a set that is not in memory."""
        if isinstance(images, LatentSet):
            return images.transformed(transform)
        texts = None
        if isinstance(images, CaptionedImages) and self.store is not None:
            texts = Texts(self.store, self.store.numbers(images.captions, images.name))
        return Pixels(images, self.config.size, transform, texts)

    def _seen(self, images: Source) -> np.ndarray:
        if isinstance(images, LatentSet):
            return whole(images)["image"]
        if self.config.latents == "given":
            return _in_memory(images).images.astype(np.float32)
        if self.config.latents == "none":
            return self.pixels(images)
        spec, params = small.load_autoencoder(self.config.latents)
        raw, size = _in_memory(images).images, self.config.size  # made floats a chunk at a time: there may be many
        return small.in_chunks(
            autoencoder.encode, spec, params, raw, spec.latent_shape, seen=lambda chunk: prepare(chunk, size)
        )


def conditions_of(images: Source) -> dict[str, np.ndarray]:
    """What goes with images in a batch: their words where they have any, else their classes."""
    if isinstance(images, ImageSet) and images.text is not None:
        return {"text": images.text}
    return {"label": images.labels}


def load(config: DataConfig) -> Images:
    """Read both sets, or what they list. Raises `BadInput` on files and settings that do not fit together."""
    train, test = _sets(config)
    train, line = part(train, config.subset, config.subset_seed)
    note = "" if config.subset is None else line
    if len(test):
        test, _ = part(test, config.test_subset, config.subset_seed)
    if config.limit is not None:
        train = train.take(np.arange(min(config.limit, len(train))))
    if config.latents not in ("none", "given"):
        _check_encoder(config, train)
    return Images(config, train, test, note, _store(config, train, test))


def _store(config: DataConfig, train: Source, test: Source) -> TextStore | None:
    """The text store of the captions that both sets have, None where they have none."""
    if isinstance(train, LatentSet) and isinstance(test, LatentSet):
        if train.store is not None and test.store is not None:
            for name in ("encoder_sha256", "length"):
                ours, theirs = (getattr(store.manifest, name) for store in (train.store, test.store))
                if ours != theirs:
                    raise BadInput(f"data.test {config.test!r}: text of {name} {theirs}, expected {ours} as of the source")
        return train.store
    if not isinstance(train, CaptionedImages) or config.text is None:
        return None
    store = open_store(config.text)
    for records in (train, test):
        if isinstance(records, CaptionedImages):
            store.numbers(records.captions, records.name)
    return store


def _captioned(images: Source) -> bool:
    return isinstance(images, CaptionedImages) or (isinstance(images, LatentSet) and images.store is not None)


def reduced(images: Images, subset: str | None) -> Images:
    """The same with only the stratified part `subset` of its training images (None: all)."""
    if subset is None:
        return images
    return replace(images, raw_train=part(images.raw_train, subset, images.config.subset_seed)[0])


def _sets(config: DataConfig) -> tuple[Any, Any]:
    """Training and held-out set, both of one kind, before subsets are taken."""
    config = replace(config, source=at_hand(config.source), test=config.test and at_hand(config.test))
    if config.latents == "given" and not is_latent_set(config.source):
        return _given_latents(config)
    if config.test is not None:
        train, test = (open_any(source, config.data_dir, config.text) for source in (config.source, config.test))
        if type(train) is not type(test) or train.class_names != test.class_names or _captioned(train) != _captioned(test):
            raise BadInput(f"data.test {config.test!r}: other classes or another kind of set than {config.source!r}")
    elif config.source == FASHION_MNIST and config.text is None:
        train, test = (load_source(FASHION_MNIST, split, config.held_out) for split in ("train", "test"))
    elif config.source == SCENES:
        if config.transform != "none":
            raise BadInput(f"transform: got {config.transform!r}, expected 'none': captions say what is left and right")
        train, test = scenes_in_memory(config.limit or TRAINED), scenes_in_memory(HELD_OUT, "heldout")
    else:
        both = open_any(config.source, config.data_dir, config.text)
        test = both.take(split_indices(len(both), "test", config.held_out, 0) if config.held_out else np.arange(0))
        train = both.take(split_indices(len(both), "train", config.held_out, 0))
    if isinstance(train, LatentSet) != (config.latents == "given"):
        kind = "a latent set" if isinstance(train, LatentSet) else "images"
        raise BadInput(f"data.latents {config.latents!r}: {config.source!r} is {kind}, expected 'given' for a latent set")
    return train, test


def check_fit(images: Images, spec: ModelSpec) -> None:
    """Raise `BadInput` unless the arrays are what a model of `spec` takes."""
    expected = spec.image_shape
    if images.shape != expected:
        raise BadInput(f"data: images are {images.shape}, the model takes {expected}")
    words = images.raw_train.text if isinstance(images.raw_train, ImageSet) else None
    if words is not None:
        if (most := int(words.max())) >= spec.option("words", 0):
            raise BadInput(f"data: captions of words 0..{most}, the model knows {spec.option('words', 0)}")
    elif images.store is not None:
        check_text(images.store, spec)
    elif not spec.classes:
        raise BadInput("data: images without captions, expected some for a model that knows no classes")
    if images.num_classes > spec.classes:
        raise BadInput(f"data: {images.num_classes} classes, but the model knows {spec.classes}")


def decoder(latents: str) -> Callable[[np.ndarray], np.ndarray]:
    """From a model's arrays (n, h, w, c) to pixels in [-1, 1]: for "none", "demo" or an autoencoder's folder."""
    if latents == "none":
        return lambda arrays: np.clip(arrays, -1, 1)
    spec, params = small.load_autoencoder(latents)
    return lambda arrays: small.in_chunks(autoencoder.decode, spec, params, arrays, spec.image_shape)


def _in_memory(images: Source) -> ImageSet:
    assert isinstance(images, ImageSet)
    return images


def _check_encoder(config: DataConfig, train: Records) -> None:
    if not isinstance(train, ImageSet):
        raise BadInput(f"data.latents {config.latents!r}: {config.source!r} wants `graftax encode` first")
    spec, _ = small.load_autoencoder(config.latents)
    shape = (config.size, config.size, train.channels)
    if spec.image_shape != shape:
        raise BadInput(
            f"data.latents {config.latents!r}: the autoencoder takes images {spec.image_shape}, these are {shape}"
        )


def _given_latents(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    """Training and held-out share of an `.npz` with `latents` (n, h, w, c) float and `labels` (n,), as `sample` writes."""
    path = Path(config.source)
    if not path.is_file():
        raise BadInput(f"latents {str(path)!r}: no such file, expected an .npz or a folder that `graftax encode` wrote")
    if config.test is not None:
        raise BadInput(f"data.test {config.test!r}: beside an .npz of latents, expected data.held_out")
    if config.transform == "flip":
        raise BadInput(f"transform: got 'flip' with latents {str(path)!r}, expected 'none' or a set of `graftax encode`")
    require_npz(path, "latents")
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
