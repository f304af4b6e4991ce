"""Latent sets: shards of what a latent model sees, with classes or with captions (`graftax.data.shards`).

`graftax encode` writes the moments of an autoencoder's posterior: a record holds mean and log-variance of one image and of
its mirror image, (2, h, w, 2c), since latents of a mirrored image are not mirrored latents. So every epoch can draw its own
flips and its own samples of the posterior. `graftax synthesize` writes what a model has drawn: a record is (h, w, c).

Captions are numbers into a text store that the manifest names, so that no step of a training runs a text encoder.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from graftax.data.pipeline import Batch, coin, flips, generator
from graftax.data.shards import MANIFEST, Shard, ShardedManifest, fetch, is_set, open_rows, read_sharded, write_shard
from graftax.data.text.store import Texts, TextStore, open_store
from graftax.errors import BadInput

DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class TextLink:
    """The text store that captions are numbers into.

    Attributes:
        folder: of the store, relative to that of the set.
        digest: of the store.
        encoder: SHA-256 of the text encoder that wrote it.
    """

    folder: str = field(compare=False)
    digest: str
    encoder: str

    @classmethod
    def to(cls, store: TextStore, folder: Path) -> TextLink:
        """The link from a set in `folder` to a store."""
        return cls(os.path.relpath(store.folder, folder), store.digest, store.manifest.encoder_sha256)

    def open(self, folder: Path, elsewhere: str | None = None) -> TextStore:
        """The store of the set in `folder`, or, where that was moved, in `elsewhere`. Raises `BadInput` on another store."""
        store = open_store(folder / self.folder if elsewhere is None else elsewhere)
        for what, found, ours in (
            ("written by the encoder", store.manifest.encoder_sha256, self.encoder), ("digest", store.digest, self.digest),
        ):  # fmt: skip
            if found != ours:
                raise BadInput(f"text store {store.folder}: {what} {found[:12]}, latent set {folder} expects {ours[:12]}")
        return store


class LatentManifest(ShardedManifest):
    """What is in a latent set. Base of dataclasses, which must have the fields below.

    Attributes:
        class_names: in order; () in sets of captions.
        latent_shape: (h, w, c).
        dtype: of the records.
        text: the text store of the captions, None in sets of classes.
    """

    what: ClassVar[str] = "latent set"
    stem: ClassVar[str] = "latents"
    later: ClassVar[tuple[str, ...]] = ("text",)
    class_names: tuple[str, ...]
    latent_shape: tuple[int, int, int]
    dtype: str
    text: TextLink | None

    @property
    def contents(self) -> str:
        """What the set holds, in words."""
        return f"{self.count:,} latents {self.latent_shape}"

    @property
    def record_shape(self) -> tuple[int, ...]:
        """Shape of one record."""
        raise NotImplementedError

    @property
    def guidance(self) -> float | None:
        """That a model was conditioned on which drew them; None of others."""
        return None

    @property
    def mirrored(self) -> bool:
        """Whether records know their mirror image."""
        raise NotImplementedError

    def seen(self, record: np.ndarray, mirror: bool, rng: np.random.Generator) -> np.ndarray:
        """The latents (h, w, c) float32 as the model sees them, of one record; `mirror`: those of its mirror image."""
        raise NotImplementedError

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> Self:
        """As `ShardedManifest.from_tree`."""
        link = tree.pop("text", None)
        return super().from_tree({**tree, "text": None if link is None else TextLink(**link)})


@dataclass(frozen=True, kw_only=True)
class Manifest(LatentManifest):
    """What is in a latent set that `graftax encode` wrote, and where it comes from.

    Attributes:
        source: as given to `graftax encode`.
        subset: the part taken of it, None for all.
        subset_seed: that drew the part.
        count: images.
        records: the `digest` of these images.
        class_names: as the source has them.
        size: side in pixels of the squares that the images were made.
        fit: how (`graftax.data.crop.FITS`).
        vae: the autoencoder, as given.
        vae_sha256: of its weights.
        latent_shape: (h, w, c).
        scale: the model's latents are (sample - shift) * scale; a number, or one for each channel.
        shift: likewise.
        dtype: of the moments.
        shard_size: records per shard.
        shards: None until all of them are there.
        text: the text store of the captions, None in sets of classes.
    """

    format: ClassVar[str] = "graftax latents 1"
    verb: ClassVar[str] = "graftax encode"
    free: ClassVar[tuple[str, ...]] = ("source", "vae", "shards")
    source: str
    subset: str | None
    subset_seed: int
    count: int
    records: str
    class_names: tuple[str, ...]
    size: int
    fit: str
    vae: str
    vae_sha256: str
    latent_shape: tuple[int, int, int]
    scale: float | tuple[float, ...]
    shift: float | tuple[float, ...]
    dtype: str
    shard_size: int
    shards: tuple[Shard, ...] | None = None
    text: TextLink | None = None

    @property
    def record_shape(self) -> tuple[int, ...]:
        """Shape (2, h, w, 2c) of one record: image and mirror image; mean and log-variance."""
        h, w, c = self.latent_shape
        return 2, h, w, 2 * c

    @property
    def mirrored(self) -> bool:
        """Whether records know their mirror image: yes."""
        return True

    def seen(self, record: np.ndarray, mirror: bool, rng: np.random.Generator) -> np.ndarray:
        """(sample - shift) * scale, a new sample of the posterior each time, (h, w, c) float32."""
        mean, log_variance = np.split(record[int(mirror)].astype(np.float32), 2, axis=-1)
        noise = rng.standard_normal(mean.shape, np.float32)  # (h, w, c)
        sample = mean + np.exp(0.5 * log_variance) * noise
        return (sample - np.asarray(self.shift, np.float32)) * np.asarray(self.scale, np.float32)


@dataclass(frozen=True, kw_only=True)
class DrawnManifest(LatentManifest):
    """What is in a latent set that `graftax synthesize` wrote, and how it was drawn.

    Attributes:
        model: as given to `graftax synthesize`.
        model_sha256: of its weights.
        prompts: as given: a file of labels, or a text store.
        prompts_sha256: of the file, or the store's `digest`.
        per_prompt: images of each prompt; image i is of prompt i // per_prompt.
        protocol: how images are drawn, JSON types by name: sampling, seed, null caption, type of matrix products.
        batch_size: images per compiled call.
        count: images.
        class_names: of the model; () for captions.
        latent_shape: (h, w, c).
        dtype: of the records.
        shard_size: records per shard.
        shards: None until all of them are there.
        text: the text store of the captions, None in sets of classes.
    """

    format: ClassVar[str] = "graftax drawn latents 1"
    verb: ClassVar[str] = "graftax synthesize"
    free: ClassVar[tuple[str, ...]] = ("model", "prompts", "shards")
    beside: ClassVar[tuple[str, ...]] = ("preview",)
    model: str
    model_sha256: str
    prompts: str
    prompts_sha256: str
    per_prompt: int
    protocol: dict[str, Any]
    batch_size: int
    count: int
    class_names: tuple[str, ...]
    latent_shape: tuple[int, int, int]
    dtype: str
    shard_size: int
    shards: tuple[Shard, ...] | None = None
    text: TextLink | None = None

    @property
    def record_shape(self) -> tuple[int, ...]:
        """Shape (h, w, c) of one record."""
        return self.latent_shape

    @property
    def guidance(self) -> float | None:
        """As `LatentManifest.guidance`."""
        return self.protocol.get("guidance")

    @property
    def mirrored(self) -> bool:
        """Whether records know their mirror image: no."""
        return False

    def seen(self, record: np.ndarray, mirror: bool, rng: np.random.Generator) -> np.ndarray:
        """The record itself, (h, w, c) float32."""
        return record.astype(np.float32)


KINDS = (Manifest, DrawnManifest)


def read_manifest(folder: Path) -> Manifest | DrawnManifest:
    """The manifest of a latent set, finished or not. Raises `BadInput` where it is missing or damaged."""
    return read_sharded(folder, *KINDS)


class LatentSet:
    """A finished latent set, or part of one: the reader that `stream` takes.

    `transform` "flip": the mirror image's moments by a coin for each epoch. Each read draws a new sample of the posterior,
    and of several captions one, by seed, epoch and the record's number in the whole set.
    """

    def __init__(
        self, folder: Path, manifest: LatentManifest, rows: Any, store: TextStore | None, indices: np.ndarray,
        transform: str = "none",
    ) -> None:  # fmt: skip
        self.folder, self.manifest, self.transform, self.store = folder, manifest, transform, store
        self._rows, self._indices, self._flip = rows, indices, flips(transform)
        if self._flip and not manifest.mirrored:
            raise BadInput(f"transform: got 'flip' with latent set {folder}, expected 'none': it has no mirror images")
        captions = [numbers for shard in manifest.sealed for numbers in shard.captions]
        self.texts = None if store is None else Texts(store, captions)
        labels = [np.asarray(shard.labels, np.int32) for shard in manifest.sealed]
        whole = np.concatenate(labels) if store is None else np.zeros(manifest.count, np.int32)
        self.labels = whole[indices]  # (n,)

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.name

    @property
    def numbers(self) -> np.ndarray:
        """Of its records in the whole set, (n,)."""
        return self._indices

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, as the source has them; () in sets of captions."""
        return self.manifest.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes of the source, whether or not all occur."""
        return len(self.class_names)

    @property
    def digest(self) -> str:
        """SHA-256 over the manifest and the records' numbers."""
        content = self.manifest.to_json().encode() + np.asarray(self._indices, "<i8").tobytes()
        return hashlib.sha256(content).hexdigest()

    @property
    def identity(self) -> dict[str, Any]:
        """As `Reader.identity`."""
        return {"data": self.digest, "transform": self.transform}

    def take(self, indices: np.ndarray) -> LatentSet:
        """The same set with only the records at `indices` (m,), in that order."""
        return LatentSet(self.folder, self.manifest, self._rows, self.store, self._indices[indices], self.transform)

    def transformed(self, transform: str) -> LatentSet:
        """The same set with another `transform`."""
        return LatentSet(self.folder, self.manifest, self._rows, self.store, self._indices, transform)

    def read(self, index: np.ndarray, epoch: np.ndarray, seed: int) -> Batch:
        """As `Reader.read`. Raises `BadInput` naming the folder where a record is damaged."""
        numbers = self._indices[index]
        dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        images = np.empty((len(index), *self.manifest.latent_shape), np.float32)
        chosen = np.empty(len(index), np.int64)
        for i, row in enumerate(fetch(self._rows, numbers, self.folder, self.manifest)):
            rng = generator(seed, epoch[i], numbers[i])
            record = np.frombuffer(row, dtype).reshape(self.manifest.record_shape)
            images[i] = self.manifest.seen(record, self._flip and coin(rng), rng)
            if self.texts is not None:
                chosen[i] = self.texts.choose(numbers[i], rng)
        if self.texts is None:
            return {"image": images, "label": self.labels[index]}
        guidance = self.manifest.guidance
        told = {} if guidance is None else {"guidance": np.full(len(index), guidance, np.float32)}
        return {"image": images, **self.texts.store.read(chosen), **told}


def open_latents(folder: str | Path, text: str | None = None) -> LatentSet:
    """The latent set in `folder`, its captions from the store in `text`, or by default from where it was when it was made.

    Raises `BadInput` where it is unfinished, a shard is missing or of another length, or the text store is another one.
    Damage within a shard is found when its record is read, and all of it by the command that wrote the set, given again.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    rows = open_rows(folder, manifest)
    if manifest.text is None and text is not None:
        raise BadInput(f"latent set {folder}: has classes and no captions, expected no text store beside it ({text!r})")
    store = None if manifest.text is None else manifest.text.open(folder, text)
    return LatentSet(folder, manifest, rows, store, np.arange(manifest.count))


def is_latent_set(folder: str | Path) -> bool:
    """Whether `folder` holds a latent set, finished or not."""
    return is_set(folder)


__all__ = [
    "DTYPES", "MANIFEST", "DrawnManifest", "LatentManifest", "LatentSet", "Manifest", "Shard", "TextLink", "is_latent_set",
    "open_latents", "read_manifest", "write_shard",
]  # fmt: skip
