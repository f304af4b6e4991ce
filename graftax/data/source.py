"""What an image set is, and those that fit into memory: the embedded demo set, any `.npz` with `images` and `labels`."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from graftax.data.pack import unpack
from graftax.errors import BadInput

FASHION_MNIST = "fashion_mnist"
AGAINST = "against"
"""What batches call captions that are wrong in nearly the same words: (b, m) numbers of words, like "text"."""
SPLITS = ("train", "test")
GARMENTS = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


class Records(Protocol):
    """Labelled images that are read one at a time: in memory, a folder, a prepared set of tensorflow-datasets.

    `digest` (hex) changes with the choice and order of images; `fit` says how they become square (`crop.FITS`).
    """

    @property
    def name(self) -> str: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def fit(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def labels(self) -> np.ndarray: ...  # (n,) int32
    def __len__(self) -> int: ...
    def fetch(self, index: int) -> tuple[np.ndarray, int]: ...  # (h, w, c) uint8 and its label
    def take(self, indices: np.ndarray) -> Self: ...


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in memory.

    Attributes:
        images: (n, h, w, c) uint8.
        labels: (n,) int32 below `num_classes`.
        name: of the set.
        num_classes: whether or not all occur.
        class_names: in order.
        text: (n, m) int32, captions as numbers of words, where there are no classes.
        against: likewise, of captions that are wrong in nearly the same words, where there are such.
    """

    images: np.ndarray
    labels: np.ndarray
    name: str
    num_classes: int
    class_names: tuple[str, ...]
    text: np.ndarray | None = None
    against: np.ndarray | None = None
    fit = "centred on black"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self.images.shape[3]

    @property
    def digest(self) -> str:
        """SHA-256 over shape, labels, pixels and captions."""
        text = b"" if self.text is None else self.text.tobytes()
        content = repr(self.images.shape).encode(), self.labels.tobytes(), self.images.tobytes(), text
        return hashlib.sha256(b"".join(content)).hexdigest()

    def fetch(self, index: int) -> tuple[np.ndarray, int]:
        """(image (h, w, c) uint8, label)."""
        return self.images[index], int(self.labels[index])

    def take(self, indices: np.ndarray) -> ImageSet:
        """The same set with only the images at `indices` (m,), in that order."""
        text, against = (None if words is None else words[indices] for words in (self.text, self.against))
        return replace(self, images=self.images[indices], labels=self.labels[indices], text=text, against=against)


def load_source(name_or_path: str | Path, split: str = "train", held_out: float = 0.0, seed: int = 0) -> ImageSet:
    """The `split` ("train" or "test") of a named set or of an `.npz` file.

    "fashion_mnist" is the embedded set with its own splits (14,500 and 2,000 images, 28x28x1, ten classes). A file
    holds `images` (n, h, w) or (n, h, w, c) uint8 and `labels` (n,) integers from 0; all of it is "train" unless
    `held_out` is above 0, when that share, drawn by `seed` alone, is "test". Raises `BadInput` naming what is wrong.
    """
    if split not in SPLITS:
        raise BadInput(f"split {split!r}: expected one of {SPLITS}")
    if name_or_path == FASHION_MNIST:
        if held_out:
            raise BadInput(f"held_out {held_out}: {FASHION_MNIST} has its own test split, expected 0")
        return _fashion_mnist(split)
    whole = _load_npz(Path(name_or_path))
    return whole.take(split_indices(len(whole), split, held_out, seed))


def prepare(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 images (n, h, w, c) as float32 in [-1, 1], centred on a background of -1 of side `size`: (n, size, size, c).

    Raises `BadInput` where the images are larger than `size` or not uint8.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise BadInput(f"images to prepare: {images.dtype}{images.shape}, expected uint8 (n, h, w, c)")
    h, w = images.shape[1:3]
    if h > size or w > size:
        raise BadInput(f"images to prepare: {h}x{w} pixels do not fit size {size}, expected at most {size}x{size}")
    top, left = (size - h) // 2, (size - w) // 2
    out = np.full((len(images), size, size, images.shape[3]), -1.0, np.float32)
    out[:, top : top + h, left : left + w] = images.astype(np.float32) / 127.5 - 1.0
    return out


def _fashion_mnist(split: str) -> ImageSet:
    packed = resources.files("graftax.data").joinpath("fashion_mnist/images.xz").read_bytes()
    images, labels = unpack(packed)[split]
    return ImageSet(images[..., None], labels, FASHION_MNIST, len(GARMENTS), GARMENTS)


def split_indices(count: int, split: str, held_out: float, seed: int) -> np.ndarray:
    """Indices, ascending, of the share `held_out` of `count` records ("test"), drawn by `seed`, or of the others ("train").

    Raises `BadInput` where the share is not in [0, 1), or "test" would be empty.
    """
    if not 0 <= held_out < 1:
        raise BadInput(f"held_out {held_out}: expected a share in [0, 1)")
    test = round(count * held_out)
    if split == "test" and not test:
        raise BadInput(f"split 'test' of {count} images: held_out {held_out} leaves none, expected a larger share")
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[:test] if split == "test" else order[test:])


def _load_npz(path: Path) -> ImageSet:
    if not path.is_file():
        raise BadInput(f"image set {str(path)!r}: no such file, expected {FASHION_MNIST!r}, an .npz, a folder or tfds:NAME")
    require_npz(path, "image set")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key in ("images", "labels")}
            found = file.files
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, AttributeError, TypeError) as error:
        raise BadInput(f"image set {path}: {error}, expected an .npz of plain arrays") from None
    for key in ("images", "labels"):
        if key not in arrays:
            raise BadInput(f"image set {path}: keys {sorted(found)}, expected 'images' and 'labels'")
    return _checked(path, arrays["images"], arrays["labels"])


def require_npz(path: Path, what: str) -> None:
    """Raise `BadInput` where a file is no .npz whatever its name: NumPy would take it for a pickle."""
    if not zipfile.is_zipfile(path):
        raise BadInput(f"{what} {path}: not an .npz file, expected one of plain arrays")


def _checked(path: Path, images: np.ndarray, labels: np.ndarray) -> ImageSet:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise BadInput(
            f"image set {path}: 'images' is {images.dtype}{images.shape}, expected uint8 (n >= 1, h, w) or (n, h, w, c)"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(images),):
        raise BadInput(f"image set {path}: 'labels' is {labels.dtype}{labels.shape}, expected integers ({len(images)},)")
    if labels.min() < 0:
        raise BadInput(f"image set {path}: 'labels' holds {labels.min()}, expected classes from 0")
    num_classes = int(labels.max()) + 1
    images = images if images.ndim == 4 else images[..., None]  # (n, h, w, c)
    names = tuple(f"class {c}" for c in range(num_classes))
    return ImageSet(images, labels.astype(np.int32), path.stem, num_classes, names)
