"""Sets that tensorflow-datasets has prepared, read through `tfds.data_source`: random access, and no TensorFlow."""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from graftax.data.crop import decode
from graftax.errors import BadInput
from graftax.progress import Progress

PREFIX = "tfds:"
_CHUNK = 1000  # labels between two signs of progress


@dataclass(frozen=True)
class TfdsImages:
    """One split of a prepared set, read one image at a time.

    Attributes:
        rows: examples of the split, their images still encoded: tensorflow-datasets would decode with OpenCV where that is
            installed, and give other pixels there.
        indices: (n,) those that belong to this set.
        name: with version and split: "imagenet2012:5.1.0#train".
        class_names: in order.
        channels: of the images.
    """

    rows: Sequence[Any]
    indices: np.ndarray
    name: str
    class_names: tuple[str, ...]
    channels: int
    fit = "adm centre crop"

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def num_classes(self) -> int:
        """Number of classes of the set, whether or not all occur."""
        return len(self.class_names)

    @property
    def digest(self) -> str:
        """SHA-256 over name, version, split and the indices."""
        return hashlib.sha256(self.name.encode() + np.asarray(self.indices, "<i8").tobytes()).hexdigest()

    @property
    def labels(self) -> np.ndarray:
        """Labels (n,) int32. All examples are read for them once, which takes minutes on ImageNet."""
        return self._labels

    @functools.cached_property
    def _labels(self) -> np.ndarray:
        out = np.empty(len(self), np.int32)
        with Progress(len(self), f"labels of {self.name}", unit="image") as progress:
            for start in range(0, len(self), _CHUNK):
                rows = [self._row(i) for i in range(start, min(start + _CHUNK, len(self)))]
                out[start : start + len(rows)] = [row["label"] for row in rows]
                progress.advance(len(rows))
        return out

    def fetch(self, index: int) -> tuple[np.ndarray, int]:
        """(image (h, w, c) uint8, label). Raises `BadInput` where the example is damaged."""
        row = self._row(index)
        return decode(io.BytesIO(row["image"]), f"{index} of {PREFIX}{self.name}", self.channels), int(row["label"])

    def take(self, indices: np.ndarray) -> TfdsImages:
        """The same set with only the images at `indices` (m,), in that order."""
        return replace(self, indices=self.indices[indices])

    def _row(self, index: int) -> Any:
        example = int(self.indices[index])
        try:
            return self.rows[example]
        except (RuntimeError, OSError, ValueError) as error:
            raise BadInput(f"{PREFIX}{self.name}: example {example} cannot be read ({error})") from None


def open_tfds(text: str, data_dir: str | Path | None = None) -> TfdsImages:
    """The set "NAME[/CONFIG][:VERSION][#SPLIT]" below `data_dir`, default TFDS_DATA_DIR or ~/tensorflow_datasets.

    Without a split: "train". It must have been prepared with `tfds build NAME --file_format=array_record`, which needs
    TensorFlow for most sets, and may be done elsewhere. Raises `BadInput` where the set is unknown, not prepared, prepared
    in another format, has no such split, or no `image` and `label`.
    """
    name, _, split = text.partition("#")
    builder = _builder(name, data_dir)
    features = builder.info.features or {}
    if not {"image", "label"} <= set(features):
        raise BadInput(f"{PREFIX}{name}: features {sorted(features)}, expected image and label")
    split = split or "train"
    rows = _rows(builder, name, split)
    full = f"{builder.info.full_name.rpartition('/')[0]}:{builder.version}#{split}"
    classes, channels = tuple(features["label"].names), features["image"].shape[-1]
    return TfdsImages(rows, np.arange(len(rows)), full, classes, channels)


def _builder(name: str, data_dir: str | Path | None) -> Any:
    """The builder of a set that is prepared and can be read at random."""
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder(name, data_dir=None if data_dir is None else str(data_dir))
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise BadInput(f"{PREFIX}{name}: {reason}, expected a set that tensorflow-datasets knows or has prepared") from None
    build = f"`tfds build {name.partition(':')[0]} --file_format=array_record`"
    if not builder.is_prepared():
        raise BadInput(f"{PREFIX}{name}: not prepared in {builder.data_dir}, expected the result of {build}")
    formats = sorted(found.value for found in builder.info.available_file_formats())
    if "array_record" not in formats:
        raise BadInput(f"{PREFIX}{name}: prepared as {', '.join(formats)}, expected array_record: {build} in another folder")
    return builder


def _rows(builder: Any, name: str, split: str) -> Sequence[Any]:
    import tensorflow_datasets as tfds

    try:
        return builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except (KeyError, ValueError, AssertionError) as error:
        reason, splits = " ".join(str(error).split())[:120], sorted(builder.info.splits)
        raise BadInput(f"{PREFIX}{name}: split {split!r} ({reason}), expected one of {splits} or a part of one") from None
