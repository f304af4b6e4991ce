"""Latent sets: ArrayRecord shards with the moments of an autoencoder's posterior, and the `manifest.json` of them.

A record holds mean and log-variance of one image and of its mirror image, (2, h, w, 2c), since latents of a mirrored image
are not mirrored latents. So every epoch can draw its own flips and its own samples of the posterior.

The manifest is written twice. The first, without `shards`, is the plan: whoever continues an interrupted encoding checks
that it is the same. Each shard is described in a file of its own as it is finished; the last one collects them into
the final manifest, sealed with a checksum. `graftax encode` writes such sets (`graftax.data.pixels.encoding`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graftax.checkpoint.files import storage_trouble
from graftax.data.pipeline import Batch, coin, flips, generator
from graftax.errors import BadInput

MANIFEST = "manifest.json"
FORMAT = "graftax latents 1"
DTYPES = ("float16", "float32")
_REPAIR = "repair it with the same `graftax encode`"


@dataclass(frozen=True)
class Shard:
    """One file of a set.

    Attributes:
        file: its name.
        bytes: its size.
        sha256: of its contents.
        labels: of each of its records.
    """

    file: str
    bytes: int
    sha256: str
    labels: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is in a latent set and where it comes from.

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
        scale: the model's latents are (sample - shift) * scale.
        shift: likewise.
        dtype: of the moments.
        shard_size: records per shard.
        shards: None until all of them are there.
    """

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
    scale: float
    shift: float
    dtype: str
    shard_size: int
    shards: tuple[Shard, ...] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all shards, whether or not they are there."""
        total = -(-self.count // self.shard_size)
        return tuple(f"latents-{i:05d}-of-{total:05d}.array_record" for i in range(total))

    @property
    def moments_shape(self) -> tuple[int, int, int, int]:
        """Shape (2, h, w, 2c) of one record: image and mirror image; mean and log-variance."""
        h, w, c = self.latent_shape
        return 2, h, w, 2 * c

    def span(self, shard: int) -> range:
        """The records of one shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))

    def to_json(self) -> str:
        """JSON text, with a checksum over all of it."""
        tree = {"format": FORMAT, **dataclasses.asdict(self)}
        return json.dumps({**tree, "checksum": _checksum(tree)}, separators=(",", ":")) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Inverse of `to_json`. Raises `ValueError` on other text, or where the checksum does not fit."""
        tree = json.loads(text)
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise ValueError(f"expected the format {FORMAT!r}")
        if tree.pop("checksum", None) != _checksum(tree):
            raise ValueError("its checksum does not fit")
        del tree["format"]
        shards = tree.pop("shards")
        tree |= {name: tuple(tree[name]) for name in ("class_names", "latent_shape")}
        return cls(**tree, shards=None if shards is None else tuple(map(shard_from_tree, shards)))


def shard_from_tree(tree: dict[str, Any]) -> Shard:
    """The shard that a JSON object describes. Raises `TypeError` or `KeyError` on others."""
    return Shard(**{**tree, "labels": tuple(tree["labels"])})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a set, finished or not. Raises `BadInput` where it is missing or damaged."""
    try:
        return Manifest.from_json((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise BadInput(f"latent set {folder}: no {MANIFEST} in it, expected a folder that `graftax encode` wrote") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadInput(f"latent set {folder}: {MANIFEST} is damaged ({error})") from None


def write_shard(path: Path, moments: Iterable[np.ndarray]) -> None:
    """Write records (2, h, w, 2c), little-endian, to an ArrayRecord file. The same records give the same bytes.

    Raises `BadInput` where the file cannot be written to its end.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    with _writing(path):
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")  # one record a chunk: they are read at random
    for record in moments:
        with _writing(path):
            writer.write(np.ascontiguousarray(record).tobytes())
    with _writing(path):
        writer.close()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = storage_trouble(error) or " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: cannot be written ({reason})") from None


class LatentSet:
    """A finished latent set, or part of one: the reader that `stream` takes.

    `transform` "flip": the mirror image's moments by a coin for each epoch. Each read draws a new sample of the posterior,
    by seed, epoch and the record's number in the whole set; (sample - shift) * scale is the image.
    """

    def __init__(self, folder: Path, manifest: Manifest, rows: Any, indices: np.ndarray, transform: str = "none") -> None:
        self.folder, self.manifest, self.transform = folder, manifest, transform
        self.labels = np.concatenate([np.asarray(s.labels, np.int32) for s in manifest.shards or ()])[indices]  # (n,)
        self._rows, self._indices, self._flip = rows, indices, flips(transform)

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, as the source has them."""
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
        return LatentSet(self.folder, self.manifest, self._rows, self._indices[indices], self.transform)

    def transformed(self, transform: str) -> LatentSet:
        """The same set with another `transform`."""
        return LatentSet(self.folder, self.manifest, self._rows, self._indices, transform)

    def read(self, index: np.ndarray, epoch: np.ndarray, seed: int) -> Batch:
        """As `Reader.read`. Raises `BadInput` naming the folder where a record is damaged."""
        numbers = self._indices[index]
        try:
            rows = self._rows.__getitems__([int(i) for i in numbers])  # a bytes object each
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"latent set {self.folder}: cannot be read ({reason}); {_REPAIR}") from None
        dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        moments = np.stack([np.frombuffer(row, dtype).reshape(self.manifest.moments_shape) for row in rows])
        images = np.empty((len(index), *self.manifest.latent_shape), np.float32)
        for i, at in enumerate(zip(epoch, numbers, strict=True)):
            rng = generator(seed, *at)
            mean, log_variance = np.split(moments[i, int(self._flip and coin(rng))].astype(np.float32), 2, axis=-1)
            noise = rng.standard_normal(mean.shape, np.float32)  # (h, w, c)
            images[i] = mean + np.exp(0.5 * log_variance) * noise
        images -= np.float32(self.manifest.shift)
        images *= np.float32(self.manifest.scale)
        return {"image": images, "label": self.labels[index]}


def open_latents(folder: str | Path) -> LatentSet:
    """The latent set in `folder`. Raises `BadInput` where it is unfinished, or a shard is missing or of another length.

    Damage within a shard is found when its record is read, and all of it by `graftax encode`, given the same command again.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest.shards is None:
        there = sum((folder / name).exists() for name in manifest.files)
        raise BadInput(
            f"latent set {folder}: {there} of {len(manifest.files)} shards, finish with the same `graftax encode`"
        )
    for shard in manifest.shards:
        path = folder / shard.file
        found = path.stat().st_size if path.is_file() else None
        if found != shard.bytes:
            state = "missing" if found is None else f"{found} bytes, expected {shard.bytes}"
            raise BadInput(f"latent set {folder}: {shard.file} is {state}; {_REPAIR}")
    rows = ArrayRecordDataSource([str(folder / shard.file) for shard in manifest.shards])
    if len(rows) != manifest.count:
        raise BadInput(f"latent set {folder}: {len(rows)} records, expected {manifest.count}; {_REPAIR}")
    return LatentSet(folder, manifest, rows, np.arange(manifest.count))


def is_latent_set(folder: str | Path) -> bool:
    """Whether `folder` holds a latent set, finished or not."""
    return (Path(folder) / MANIFEST).is_file()


def _checksum(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
