"""What a training run writes down: windowed means, the lines that listeners get, and `metrics.jsonl` without duplicates."""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from clu.metrics import Average
from flax.traverse_util import flatten_dict
from PIL import Image

from graftax.checkpoint.paths import WorkPath, append, is_remote, work_path, write_bytes, write_text

FILE, HPARAMS, IMAGES = "metrics.jsonl", "hparams.json", "images"
Scalars = Mapping[str, float]
Images = Mapping[str, np.ndarray]  # name -> (h, w, c) or (n, h, w, c) uint8, c 1 or 3


class Window:
    """Means of step metrics and images per second since it was made; `pause` stops the clock."""

    def __init__(self) -> None:
        self._averages: dict[str, Average] = {}
        self._images = 0
        self._start = time.perf_counter()

    def add(self, numbers: Mapping[str, float], images: int) -> None:
        """Count one step over `images` images."""
        for name, value in numbers.items():
            one = Average(total=np.float64(value), count=np.int64(1))  # pyright: ignore[reportCallIssue]
            self._averages[name] = self._averages[name].merge(one) if name in self._averages else one
        self._images += images

    def means(self) -> dict[str, float]:
        """{metric: mean over the steps} and images_per_s."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        means = {name: float(average.compute()) for name, average in self._averages.items()}
        return {**means, "images_per_s": self._images / seconds}

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside does not count."""
        began = time.perf_counter()
        yield
        self._start += time.perf_counter() - began


class Writer(Protocol):
    """What every writer does. `step` counts the updates done; a name is written once per step at most."""

    def write_scalars(self, step: int, scalars: Scalars) -> None: ...
    def write_images(self, step: int, images: Images) -> None: ...
    def write_hparams(self, hparams: Mapping[str, Any]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """One line per split and call in folder/metrics.jsonl, {"step", "split", name: number}; numbers that JSON cannot
    hold become null. Images are PNG files in folder/images, hyper-parameters folder/hparams.json.

    On opening, lines and images of steps beyond `step` (left by a run that was cut off after its last checkpoint) and a
    torn last line are dropped.
    """

    def __init__(self, folder: WorkPath, step: int) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / FILE).exists():
            kept = [line for line in read_metrics(folder) if line["step"] <= step]
            write_text(folder / FILE, "".join(json.dumps(line) + "\n" for line in kept))
        for path in (folder / IMAGES).glob("*.png"):
            if int(path.stem.rpartition("_")[2]) > step:
                path.unlink()

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Append one line per split."""
        lines: dict[str, dict[str, Any]] = {}
        for name, value in scalars.items():
            split, _, rest = name.partition("/")
            lines.setdefault(split, {"step": step, "split": split})[rest] = finite_or_none(value)
        append(self._folder / FILE, "".join(json.dumps(line) + "\n" for line in lines.values()))

    def write_images(self, step: int, images: Images) -> None:
        """images/SPLIT_NAME_00000100.png, several images side by side."""
        for name, image in images.items():
            row = image if image.ndim == 3 else np.concatenate(list(image), axis=1)  # (h, n w, c)
            plain = row[..., 0] if row.shape[-1] == 1 else row
            picture = io.BytesIO()
            Image.fromarray(plain).save(picture, "png")
            write_bytes(self._folder / IMAGES / f"{name.replace('/', '_')}_{step:08d}.png", picture.getvalue())

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Replace hparams.json."""
        write_text(self._folder / HPARAMS, json.dumps(hparams, indent=1) + "\n")

    def flush(self) -> None:
        """Nothing waits: every line is in the file when its call returns."""

    def close(self) -> None:
        """Nothing to close."""


class Record:
    """The records of a run: each goes to `writer` (None: no files), and as one dict to `listener`."""

    def __init__(self, writer: Writer | None = None, listener: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._writer, self._listener = writer, listener

    def describe(self, hparams: Mapping[str, Any]) -> None:
        """Write down what the run is, a tree of JSON types, under names like "metadata.optimiser.learning_rate"."""
        if self._writer:
            flat: dict[str, Any] = flatten_dict(dict(hparams), sep=".")
            plain = {k: v if v is None or isinstance(v, int | float | str) else json.dumps(v) for k, v in flat.items()}
            self._writer.write_hparams(plain)

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Write down what was found after `step` updates: numbers, and images (n, h, w, c) or (h, w, c) uint8.

        The listener gets {"step", "split", name: number} without the images; numbers that JSON cannot hold are None.
        """
        images = {name: np.asarray(value) for name, value in values.items() if np.ndim(value) > 2}
        numbers = {name: float(value) for name, value in values.items() if name not in images}
        if self._writer:
            self._writer.write_scalars(step, {f"{split}/{name}": value for name, value in numbers.items()})
            if images:
                self._writer.write_images(step, {f"{split}/{name}": image for name, image in images.items()})
        if self._listener:
            self._listener({"step": step, "split": split, **{name: finite_or_none(v) for name, v in numbers.items()}})

    def flush(self) -> None:
        """Return when all records have left this process."""
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """Flush, close the files."""
        if self._writer:
            self._writer.close()


def finite_or_none(value: float) -> float | None:
    """The number, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None


def local_folder(folder: WorkPath) -> Path:
    """`folder` itself, or a temporary one in its place for libraries that cannot write to a bucket; then `upload`."""
    return Path(tempfile.mkdtemp()) if is_remote(folder) else Path(folder)


def upload(local: Path, folder: WorkPath) -> None:
    """Copy all files of a temporary folder into the bucket's; nothing where `local_folder` gave `folder` itself."""
    for file in filter(Path.is_file, local.rglob("*") if is_remote(folder) else ()):
        (folder / str(file.relative_to(local))).write_bytes(file.read_bytes())


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of folder/metrics.jsonl in order, without a last line that was cut off in writing."""
    lines = (work_path(folder) / FILE).read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]  # whole lines end in a newline
