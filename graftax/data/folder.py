"""Plain image folders: one sub-folder per class, as ImageNet is unpacked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from graftax.data.crop import decode
from graftax.errors import BadInput

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class ImageFolder:
    """Images in FOLDER/CLASS/NAME, read one at a time; classes and names in alphabetical order, on every file system.

    Every image has three channels.

    Attributes:
        folder: that holds the classes.
        paths: (n,) relative to it.
        labels: (n,) int32, numbers into `class_names`.
        class_names: names of the sub-folders.
    """

    folder: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    channels = 3
    fit = "adm centre crop"

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.name

    @property
    def num_classes(self) -> int:
        """Number of sub-folders."""
        return len(self.class_names)

    @property
    def digest(self) -> str:
        """SHA-256 over the names of classes and images, in order; pixels are not looked at."""
        return hashlib.sha256("\n".join((*self.class_names, *self.paths)).encode()).hexdigest()

    def fetch(self, index: int) -> tuple[np.ndarray, int]:
        """(image (h, w, 3) uint8, label). Raises `BadInput` naming the file where it is no image, or damaged."""
        path = self.folder / self.paths[index]
        return decode(path, str(path)), int(self.labels[index])

    def take(self, indices: np.ndarray) -> ImageFolder:
        """The same set with only the images at `indices` (m,), in that order."""
        return replace(self, paths=tuple(self.paths[i] for i in indices), labels=self.labels[indices])


def open_folder(folder: str | Path) -> ImageFolder:
    """The images below `folder`. Files of other suffixes than images' and hidden ones are passed over.

    Raises `BadInput` where there is no such folder, it has no sub-folders, or one of them holds no images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"image folder {str(folder)!r}: no such folder")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise BadInput(f"image folder {folder}: no sub-folders, expected one per class with its images")
    names = [_images(folder / name) for name in classes]
    paths = tuple(f"{name}/{image}" for name, images in zip(classes, names, strict=True) for image in images)
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(images) for images in names])
    return ImageFolder(folder, paths, labels, tuple(classes))


def _images(folder: Path) -> list[str]:
    names = (path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not (found := sorted(name for name in names if not name.startswith("."))):
        raise BadInput(f"image folder {folder}: no images ({', '.join(SUFFIXES)}) in it, expected some of its class")
    return found
