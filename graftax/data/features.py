"""Features of a set's images, made once by a frozen encoder: targets for trainings (`graftax.train.recipes.repa`).

A folder holds `features.npy` (n, 1 or 2, tokens, width), for every image in the set's order its own and, where asked for,
its mirror image's, read from the mapped file; and `features.json`: of which images, by which encoder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graftax.data.pipeline import Batch, Pixels, Reader, coin, flips, generator, in_order, read_threads
from graftax.data.source import Records
from graftax.errors import BadInput

ARRAY, ABOUT = "features.npy", "features.json"
NAME = "features"
"""What a batch calls them."""

Encoder = Callable[[np.ndarray], Any]
"""uint8 images (b, h, w, 3) -> features (b, tokens, width)."""


@dataclass(frozen=True)
class Features:
    """Features in a folder.

    Attributes:
        rows: (n, 1 or 2, tokens, width), mapped.
        data: digest of the images.
        encoder: what made them, in words.
    """

    rows: np.ndarray
    data: str
    encoder: str


def write_features(
    folder: str | Path, records: Records, size: int, encoder: Encoder, about: str, *, mirrored: bool = False,
    batch: int = 64, dtype: str = "float16",
) -> None:  # fmt: skip
    """Write what `encoder` makes of all images of a set, made squares of side `size`; grey ones get three channels.

    `about`: the encoder in words, such as its folder. `mirrored`: those of mirror images too, for trainings that flip.
    Raises `BadInput` where there are no images.
    """
    if not len(records):
        raise BadInput("features: no images, expected one or more")
    folder, reader = Path(folder), Pixels(records, size)
    folder.mkdir(parents=True, exist_ok=True)
    spans = [(start, min(start + batch, len(reader))) for start in range(0, len(reader), batch)]
    rows = None
    for (start, end), part in zip(spans, in_order(reader, spans, read_threads()), strict=True):
        pixels = np.round((part["image"] + 1) * 127.5).astype(np.uint8)  # (b, size, size, c)
        pixels = np.broadcast_to(pixels, (*pixels.shape[:3], 3))
        sides = (pixels, pixels[:, :, ::-1])[: 1 + mirrored]
        found = np.stack([np.asarray(encoder(side)) for side in sides], axis=1)  # (b, sides, tokens, width)
        if rows is None:
            shape = (len(reader), *found.shape[1:])
            rows = np.lib.format.open_memmap(folder / ARRAY, mode="w+", dtype=dtype, shape=shape)
        rows[start:end] = found
    assert rows is not None
    rows.flush()
    (folder / ABOUT).write_text(json.dumps({"data": records.digest, "encoder": about}) + "\n", "utf-8")


def open_features(folder: str | Path) -> Features:
    """The features in a folder. Raises `BadInput` where there are none, or they are damaged."""
    try:
        about = json.loads((Path(folder) / ABOUT).read_text("utf-8"))
        rows = np.load(Path(folder) / ARRAY, mmap_mode="r", allow_pickle=False)
        if rows.ndim != 4:
            raise ValueError(f"{ARRAY} has the shape {rows.shape}")
        return Features(rows, str(about["data"]), str(about["encoder"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise BadInput(f"features {folder}: {error}, expected {ARRAY} and {ABOUT} as `write_features` leaves them") from None


class WithFeatures:
    """A reader whose batches have "features" (b, tokens, width) float32 too, of the rows `numbers` (n,) for its records; of
    the mirror image where the reader's coin says so."""

    def __init__(self, reader: Reader, features: Features, numbers: np.ndarray, transform: str) -> None:
        if len(numbers) != len(reader) or (len(numbers) and numbers.max() >= len(features.rows)):
            raise BadInput(f"features: {len(features.rows)} rows, expected one for each of {len(reader)} images")
        self._flip = flips(transform)
        if self._flip and features.rows.shape[1] == 1:
            raise BadInput("transform: got 'flip', expected 'none': the features are not those of mirror images too")
        self._reader, self._features, self._numbers = reader, features, numbers
        self.identity = {**reader.identity, NAME: f"{features.data} {features.encoder}"}

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, index: np.ndarray, epoch: np.ndarray, seed: int) -> Batch:
        """As `Reader.read`."""
        numbers = self._numbers[index]
        sides = [int(self._flip and coin(generator(seed, *at))) for at in zip(epoch, numbers, strict=True)]
        rows = self._features.rows[numbers, sides].astype(np.float32)
        return {**self._reader.read(index, epoch, seed), NAME: rows}
