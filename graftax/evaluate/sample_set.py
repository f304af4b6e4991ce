"""Many samples of a model in a folder: drawn in parts, on all devices and hosts, continued where it was interrupted.

    FOLDER/protocol.json      model and protocol that the images belong to
    FOLDER/parts/0000100.npz  images 100.. of one part, written whole or not at all
    FOLDER/samples.npz        all of them, in the form that ADM's evaluator reads: `arr_0` (n, h, w, c) uint8, `arr_1` labels

The noise of image i depends on the protocol's seed and i alone: other parts, devices and hosts change an image by rounding
at most. Hosts take the parts in turn; the folder must be one that all see.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from graftax.checkpoint.files import made, replacing
from graftax.data.pixels.decoding import Decode
from graftax.errors import BadInput, naming
from graftax.evaluate.protocol import Protocol, require_equal
from graftax.evaluate.spread import Spread, spread
from graftax.models import Model
from graftax.progress import Progress

INDEX, PARTS, WHOLE = "protocol.json", "parts", "samples.npz"


@dataclass(frozen=True)
class SampleSet:
    """A finished or unfinished folder of samples.

    Attributes:
        folder: where they are.
        protocol: how they were drawn.
        part: images per file.
    """

    folder: Path
    protocol: Protocol
    part: int

    def file(self, first: int) -> Path:
        """Where the images from number `first` on are kept."""
        return self.folder / PARTS / f"{first:07d}.npz"

    @property
    def starts(self) -> range:
        """The first image of every part."""
        return range(0, self.protocol.count, self.part)

    def missing(self) -> list[int]:
        """The first images of parts that are still to be drawn."""
        return [first for first in self.starts if not self.file(first).exists()]

    def read(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Images (n, h, w, c) uint8 and labels (n,) int32 of the part that begins with image `first`."""
        with np.load(self.file(first)) as stored:
            return stored["images"], stored["labels"]

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images and labels as `read` gives them, one part after the other."""
        return map(self.read, self.starts)


def draw_set(
    model: Model, protocol: Protocol, decode: Decode, folder: Path, *, identity: str, part: int = 100, show: bool = True
) -> SampleSet:
    """Draw the images of `protocol` into `folder`, or those that an interrupted call has left.

    `decode` turns the model's arrays (n, h, w, c) into pixels in [-1, 1]. `identity` names the model's weights (a hash).
    `part`: images per file and compiled call, spread over this host's devices.

    Raises BadInput where the folder holds samples of another model, protocol or part size, is not one that all hosts share,
    or `part` does not divide over the devices.
    """
    hands = spread(model, protocol.sampling, protocol.seed, part, protocol.dtype)
    if jax.process_index() == 0:
        _begin(folder, protocol.drawn(), identity, part)
    multihost_utils.sync_global_devices("graftax: folder of samples")
    _require_shared(folder)
    found = _continue(folder, protocol.drawn(), identity, part)
    missing = found.missing()
    multihost_utils.sync_global_devices("graftax: parts shared out")  # before anybody adds to them
    labels = protocol.label_array(model.spec.classes)
    mine = missing[jax.process_index() :: jax.process_count()]
    done = len(found.starts) - len(missing)
    with Progress(len(mine) + done, "samples", unit="part", initial=done, show=show) as progress:
        for first in mine:
            _draw_part(hands, found, decode, labels, first)
            progress.advance()
    multihost_utils.sync_global_devices("graftax: samples drawn")
    return found


def _draw_part(hands: Spread, found: SampleSet, decode: Decode, labels: np.ndarray, first: int) -> None:
    last = min(first + found.part, found.protocol.count)
    images = found.protocol.to_uint8(decode(hands.draw(first, {"y": labels[first:last]})))[: last - first]
    with made(found.folder / PARTS), replacing(found.file(first)) as temporary, temporary.open("wb") as file:
        np.savez(file, images=images, labels=labels[first:last])


def _begin(folder: Path, protocol: Protocol, identity: str, part: int) -> None:
    """Note what the folder's images belong to, unless that is noted already."""
    if (index := folder / INDEX).exists():
        return
    with made(folder / PARTS), replacing(index) as temporary:
        record = {"model": identity, "part": part, "protocol": json.loads(protocol.to_json())}
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def _require_shared(folder: Path) -> None:
    """Raise `BadInput` on all hosts where one of them does not see what the first has put into the folder."""
    seen = folder.is_dir() and INDEX in os.listdir(folder)
    hosts = np.atleast_1d(multihost_utils.process_allgather(np.array(seen, np.int32)))  # (hosts,)
    if not hosts.all():
        blind = ", ".join(map(str, np.flatnonzero(hosts == 0)))
        raise BadInput(f"{folder}: another one on host {blind}, expected a folder that all hosts share")


def _continue(folder: Path, protocol: Protocol, identity: str, part: int) -> SampleSet:
    """The folder's samples so far, checked to be of this model and protocol."""
    kept, model = open_set(folder), json.loads((folder / INDEX).read_text())["model"]
    if model != identity:
        raise BadInput(
            f"{folder}: samples of the model {model[:12]}, expected {identity[:12]} or an empty folder "
            "(--overwrite empties it)"
        )
    with naming(f"{folder} (--overwrite empties it)"):
        require_equal({"there": kept.protocol, "this run": protocol})
    if kept.part != part:
        raise BadInput(f"{folder}: {kept.part} images per part, expected {part} as when it was begun")
    return kept


def remove_set(folder: Path) -> None:
    """Remove the samples in a folder, and nothing else in it."""
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    for name in (INDEX, WHOLE):
        (folder / name).unlink(missing_ok=True)


def open_set(folder: Path) -> SampleSet:
    """The samples in a folder that `draw_set` has written to. Raises `BadInput` where there are none."""
    try:
        record = json.loads((folder / INDEX).read_text())
        return SampleSet(folder, Protocol.from_json(json.dumps(record["protocol"])), int(record["part"]))
    except FileNotFoundError:
        raise BadInput(f"{folder}: no {INDEX} in it, expected a folder of samples") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / INDEX}: damaged ({error!r})") from None


def write_npz(samples: SampleSet, path: Path | None = None) -> Path:
    """All images as one file, `arr_0` (n, h, w, c) uint8 and `arr_1` (n,) int32, one part in memory at a time.

    `path` None: FOLDER/samples.npz. Raises `BadInput` where parts are missing.
    """
    if missing := samples.missing():
        raise BadInput(f"{samples.folder}: {len(missing)} of {len(samples.starts)} parts missing, draw them first")
    path = path or samples.folder / WHOLE
    labels = np.concatenate([labels for _, labels in samples])
    shape = next(iter(samples))[0].shape[1:]
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            head = {"descr": "|u1", "fortran_order": False, "shape": (samples.protocol.count, *shape)}
            np.lib.format.write_array_header_1_0(file, head)
            for images, _ in samples:
                file.write(np.ascontiguousarray(images).data)
        with archive.open("arr_1.npy", "w") as file:
            np.lib.format.write_array(file, labels, allow_pickle=False)
    return path
