"""Images in `.npz` files in the form of OpenAI's ADM evaluator, read batch by batch: 50,000 of 256x256 are 9.8 GB.

A batch of samples has `arr_0` (n, h, w, 3) uint8. A reference batch may also have the moments of a whole data set, `mu`,
`sigma` (FID) and `mu_s`, `sigma_s` (sFID), its `arr_0` then being a part of the set, for precision and recall.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graftax.errors import BadInput

IMAGES = ("arr_0", "images")
"""Names of the images, ADM's first; `graftax sample` writes the second."""

_BROKEN = (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError, NotImplementedError)


@dataclass(frozen=True)
class ImageFile:
    """Images of one file, uint8.

    Attributes:
        path: of the file.
        entry: their member of the archive.
        shape: (n, h, w, 3).
    """

    path: Path
    entry: str
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Consecutive images (at most `size`, h, w, 3), in file order, each read when it is asked for.

        Raises `BadInput` where the file ends early.
        """
        bytes_each = int(np.prod(self.shape[1:]))
        with zipfile.ZipFile(self.path) as archive, archive.open(self.entry) as file:
            _header(file)
            for start in range(0, len(self), size):
                count = min(size, len(self) - start)
                try:
                    data = file.read(count * bytes_each)
                except _BROKEN as error:
                    raise BadInput(f"{self.path}: damaged at image {start} ({error})") from None
                if len(data) < count * bytes_each:
                    raise BadInput(f"{self.path}: ends within images {start}..{start + count - 1} of {len(self)}")
                yield np.frombuffer(data, np.uint8).reshape(count, *self.shape[1:])


def open_images(path: str | Path) -> ImageFile | None:
    """The images of an `.npz` file, or None where it has none (a reference of moments alone).

    Raises `BadInput` on missing or damaged files and on images that are not (n >= 1, h, w, 3) uint8.
    """
    path, names = _names(path)
    entry = next((f"{name}.npy" for name in IMAGES if name in names), None)
    if entry is None:
        return None
    try:
        with zipfile.ZipFile(path) as archive, archive.open(entry) as file:
            shape, fortran, dtype = _header(file)
    except _BROKEN as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None
    if len(shape) != 4 or shape[3] != 3 or not shape[0] or dtype != np.uint8 or fortran:
        order = " in Fortran order" if fortran else ""
        raise BadInput(f"{path}: {entry} is {dtype}{shape}{order}, expected uint8 (n >= 1, h, w, 3), values 0 to 255")
    return ImageFile(path, entry, shape)


def read_moments(path: str | Path) -> dict[str, np.ndarray]:
    """The entries `mu`, `sigma`, `mu_s`, `sigma_s` of a reference file, float64; empty where it has no `mu`.

    Raises `BadInput` on damaged files and where some of them are missing, misshapen or not finite.
    """
    path, names = _names(path)
    if "mu" not in names:
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: np.asarray(file[name], np.float64) for name in ("mu", "sigma", "mu_s", "sigma_s")}
    except _BROKEN as error:
        raise BadInput(f"{path}: {error}, expected mu, sigma, mu_s and sigma_s of numbers") from None
    for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
        shape = found[mean].shape
        if len(shape) != 1 or found[covariance].shape != shape * 2:
            raise BadInput(f"{path}: {mean} {shape} with {covariance} {found[covariance].shape}, expected (d,) and (d, d)")
    if broken := [name for name, array in found.items() if not np.isfinite(array).all()]:
        raise BadInput(f"{path}: {broken[0]} has entries that are not finite")
    return found


def _names(path: str | Path) -> tuple[Path, set[str]]:
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{str(path)!r}: no such file, expected an .npz of images")
    try:
        with zipfile.ZipFile(path) as archive:
            return path, {name.removesuffix(".npy") for name in archive.namelist()}
    except _BROKEN as error:
        raise BadInput(f"{path}: not an .npz file ({error})") from None


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type of the array that follows in a `.npy` stream."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f".npy version {version}, expected 1.0 or 2.0")
