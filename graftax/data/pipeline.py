"""Endless shuffled batches of any set, with a position that can be saved and restored exactly.

Grain orders the records' numbers: shuffled anew each epoch, repeated without end, split over processes, batched; where
reading takes time, its threads prefetch. A `Reader` then reads a whole batch at once, since records one by one through
Python would starve the device. The stream of global batches depends on the reader, the seed and the batch size alone:
with more processes each one gets its stride of the same global batch. What is drawn for a record (flips, a sample of its
latents) depends on the seed, the epoch and the record's number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from graftax.data.crop import FITS
from graftax.data.source import Records
from graftax.data.text.store import Texts
from graftax.errors import BadInput

TRANSFORMS = ("none", "flip")
ENDLESS = 1 << 48
"""Batches in a stream."""
Batch = dict[str, np.ndarray]


class Reader(Protocol):
    """Records by number, in batches. `identity` (JSON types) changes with what is read."""

    @property
    def identity(self) -> dict[str, Any]: ...
    def __len__(self) -> int: ...
    def read(self, index: np.ndarray, epoch: np.ndarray, seed: int) -> Batch:
        """{"image": (b, h, w, c) float32, "label": (b,) int32} of records `index` (b,), each in its `epoch` (b,).

        Captioned records have "text" (b, m, d) and "text_mask" (b, m) in place of the label (`TextStore.read`).
        """
        ...


class Batches:
    """Iterator over batches as a `Reader` gives them; made by `stream` or `batches`.

    `state()` is a JSON-able dict; an iterator made with the same arguments and given that dict by `restore` continues
    with the very next batch.
    """

    def __init__(self, iterator: Any, identity: dict[str, Any]) -> None:
        self._iterator, self._identity = iterator, identity

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def state(self) -> dict[str, Any]:
        """Position of the next batch, with what the order of the batches depends on."""
        return {**self._identity, "next_batch": int(self._iterator.get_state()["next_index"])}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken. Raises `BadInput` where it belongs to another stream of batches."""
        position = state.get("next_batch")
        if not isinstance(position, int) or position < 0:
            raise BadInput(f"data state: next_batch {position!r}, expected a number of batches from 0")
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise BadInput(f"data state: {name} {state.get(name)!r}, expected {value!r} as in this run's data")
        self._iterator.set_state({"next_index": position})

    def close(self) -> None:
        """Stop reading ahead. No more batches come."""
        self._iterator.close()


def stream(
    reader: Reader, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1, threads: int = 0
) -> Batches:
    """Endless batches of a reader's records.

    `batch_size` is global; this process gets `batch_size / process_count` of it. Every epoch is a fresh permutation by
    `seed`; a batch may span two epochs, so no record is ever left out. `threads` read as many batches ahead; 0, for data
    in memory: none. Raises `BadInput` on arguments that do not fit together.
    """
    import grain  # late, as in `graftax.data.feed`

    count = len(reader)
    if not 0 <= process_index < process_count:
        raise BadInput(f"process_index {process_index}: expected within 0..{process_count - 1}")
    if batch_size < 1 or batch_size % process_count:
        raise BadInput(f"batch_size {batch_size}: expected a positive multiple of process_count {process_count}")
    if not count:
        raise BadInput("data to batch: no records, expected one or more")

    def read(number: int) -> Batch:
        share = np.arange(number * batch_size + process_index, (number + 1) * batch_size, process_count)
        epochs, places = np.divmod(share, count)  # of this process's records in the endless order
        return reader.read(_shuffled(places, epochs, count, seed), epochs, seed)

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    iterator = iter(grain.MapDataset.range(ENDLESS).map(read).to_iter_dataset(options))
    return Batches(iterator, {"records": count, "batch_size": batch_size, "seed": seed, **reader.identity})


def _shuffled(places: np.ndarray, epochs: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Numbers (b,) of the records that stand at `places` (b,) of the order of their `epochs` (b,).

    It is the order of grain's `shuffle`, whose own data sets take ten times as long for a batch: they go record by record.
    """
    from grain.experimental import index_shuffle

    seeds = (seed + epochs) % 2**32
    at = zip(places.tolist(), seeds.tolist(), strict=True)
    return np.array([index_shuffle(place, count - 1, own, 4) for place, own in at], np.int64)


def batches(
    arrays: Mapping[str, np.ndarray], batch_size: int, seed: int, process_index: int = 0, process_count: int = 1,
    transform: str = "none",
) -> Batches:  # fmt: skip
    """`stream` of arrays in memory: "image" (n, h, w, c) float32 (pixels in [-1, 1] or latents), and what goes with it
    (n, ..), "label" int32 or "text".

    `transform` "flip" mirrors a record left to right by a coin for each epoch. Raises `BadInput` on arguments that do not
    fit together.
    """
    return stream(Arrays(arrays, transform), batch_size, seed, process_index, process_count)


class Arrays:
    """Reader of arrays in memory; see `batches`."""

    def __init__(self, arrays: Mapping[str, np.ndarray], transform: str = "none") -> None:
        images, others = arrays["image"], {name: array for name, array in arrays.items() if name != "image"}
        if images.dtype != np.float32 or images.ndim != 4 or not len(images):
            raise BadInput(f"images to batch: {images.dtype}{images.shape}, expected float32 (n >= 1, h, w, c)")
        for name, array in others.items():
            is_label = name == "label"
            if len(array) != len(images) or (is_label and (array.dtype, array.ndim) != (np.int32, 1)):
                expected = f"int32 ({len(images)},)" if is_label else f"({len(images)}, ...)"
                raise BadInput(f"{name} to batch: {array.dtype}{array.shape}, expected {expected}")
        self._images, self._others, self._flip = images, others, flips(transform)
        self.identity = {"transform": transform}

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: np.ndarray, epoch: np.ndarray, seed: int) -> Batch:
        """As `Reader.read`."""
        images = self._images[index]  # (b, h, w, c)
        if self._flip:
            coins = np.array([coin(generator(seed, *at)) for at in zip(epoch, index, strict=True)])
            images = np.where(coins[:, None, None, None], images[:, :, ::-1], images)
        return {"image": images, **{name: array[index] for name, array in self._others.items()}}


class Pixels:
    """Reader of images made square, of side `size`, and scaled to [-1, 1]; `transform` as in `batches`.

    With `texts`, the records' captions, a batch has one of each in place of the label: of several, another each epoch.
    """

    def __init__(self, records: Records, size: int, transform: str = "none", texts: Texts | None = None) -> None:
        self._records, self._size, self._flip, self._texts = records, size, flips(transform), texts
        self.identity = {"data": records.digest, "size": size, "fit": records.fit, "transform": transform}
        if texts is not None:
            self.identity["text"] = texts.store.digest

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: np.ndarray, epoch: np.ndarray, seed: int) -> Batch:
        """As `Reader.read`. Raises `BadInput` naming an image that cannot be read."""
        images = np.empty((len(index), self._size, self._size, self._records.channels), np.float32)
        labels, chosen = np.empty(len(index), np.int32), np.empty(len(index), np.int64)
        for i, at in enumerate(zip(epoch, index, strict=True)):
            rng = generator(seed, *at)
            image, labels[i] = self._records.fetch(int(at[1]))
            square = FITS[self._records.fit](image, self._size)
            images[i] = square[:, ::-1] if self._flip and coin(rng) else square
            if self._texts is not None:
                chosen[i] = self._texts.choose(at[1], rng)
        images /= 127.5
        images -= 1
        return {"image": images, **({"label": labels} if self._texts is None else self._texts.store.read(chosen))}


def whole(reader: Reader, chunk: int = 256) -> Batch:
    """All records of a reader in their order, as one batch, each as in epoch 0 of seed 0."""
    starts = range(0, max(len(reader), 1), chunk)
    parts = list(in_order(reader, [(start, min(start + chunk, len(reader))) for start in starts], read_threads()))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def in_order(reader: Reader, spans: Sequence[tuple[int, int]], threads: int) -> Iterator[Batch]:
    """Records start..stop-1 of each span (start, stop) as a batch, as in epoch 0 of seed 0; `threads` read ahead."""
    import grain  # late, as in `graftax.data.feed`

    def read(span: tuple[int, int]) -> Batch:
        index = np.arange(*span)
        return reader.read(index, np.zeros_like(index), 0)

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(grain.MapDataset.source(spans).map(read).to_iter_dataset(options))


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one record in one epoch, whatever process and batch it falls into."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, epoch, index]))


def coin(rng: np.random.Generator) -> bool:
    """Heads or tails."""
    return bool(rng.random() < 0.5)


def flips(transform: str) -> bool:
    """Whether `transform` mirrors. Raises `BadInput` where there is no such transform."""
    if transform not in TRANSFORMS:
        raise BadInput(f"transform {transform!r}: expected one of {TRANSFORMS}")
    return transform == "flip"


def read_threads() -> int:
    """How many threads should read ahead on this machine: one for each core, at most 16."""
    return min(16, os.cpu_count() or 1)
