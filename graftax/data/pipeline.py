"""Endless shuffled batches of an in-memory set, with a position that can be saved and restored exactly.

Grain orders the records' indices: shuffled anew each epoch, repeated without end, split over processes, batched. One
fancy index then takes the whole batch, since records one by one through Python would starve the device. The stream of
global batches depends on the data's length, the seed and the batch size alone: with more processes each one gets its
stride of the same global batch.
"""

from __future__ import annotations

from typing import Any

import grain
import numpy as np

from graftax.errors import BadInput

TRANSFORMS = ("none", "flip")
_FLIP_SEED = 0x5EED  # keeps the coins of `flip` apart from the order of the records


class Batches:
    """Iterator over {"image": (b, h, w, c) float32, "label": (b,) int32}; made by `batches`.

    `state()` is a JSON-able dict; an iterator made with the same arguments and given that dict by `restore` continues
    with the very next batch.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, indices: Any, identity: dict[str, Any]) -> None:
        self._images, self._labels = images, labels
        self._indices, self._identity = indices, identity

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        drawn = next(self._indices)
        index, flip = drawn if isinstance(drawn, tuple) else (drawn, None)
        images = self._images[index]  # (b, h, w, c)
        if flip is not None:
            images = np.where(flip[:, None, None, None], images[:, :, ::-1], images)
        return {"image": images, "label": self._labels[index]}

    def state(self) -> dict[str, Any]:
        """Position of the next batch, with what the order of the batches depends on."""
        return {**self._identity, "next_batch": int(self._indices.get_state()["next_index"])}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken. Raises `BadInput` where it belongs to another stream of batches."""
        position = state.get("next_batch")
        if not isinstance(position, int) or position < 0:
            raise BadInput(f"data state: next_batch {position!r}, expected a number of batches from 0")
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise BadInput(f"data state: {name} {state.get(name)!r}, expected {value!r} as in this run's data")
        self._indices.set_state({"next_index": position})


def batches(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    transform: str = "none",
) -> Batches:
    """Endless batches of `images` (n, h, w, c) float32 (pixels in [-1, 1] or latents) and `labels` (n,) int32.

    `batch_size` is global; this process gets `batch_size / process_count` of it. Every epoch is a fresh permutation by
    `seed`; a batch may span two epochs, so no record is ever left out. `transform` "flip" mirrors each record left to
    right by a coin drawn for its position in the stream. Raises `BadInput` on arguments that do not fit together.
    """
    _check(images, labels, batch_size, process_index, process_count, transform)
    order: Any = grain.MapDataset.range(len(images)).shuffle(seed=seed).repeat(None)
    if transform == "flip":
        order = order.random_map(_with_coin, seed=seed ^ _FLIP_SEED)
    order = order[process_index::process_count].batch(batch_size // process_count)
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # in memory: threads would only cost
    identity = {"records": len(images), "batch_size": batch_size, "seed": seed, "transform": transform}
    return Batches(images, labels, iter(order.to_iter_dataset(options)), identity)


def _with_coin(index: int, rng: np.random.Generator) -> tuple[int, bool]:
    return index, bool(rng.random() < 0.5)


def _check(
    images: np.ndarray, labels: np.ndarray, batch_size: int, process_index: int, process_count: int, transform: str
) -> None:
    if images.dtype != np.float32 or images.ndim != 4 or not len(images):
        raise BadInput(f"images to batch: {images.dtype}{images.shape}, expected float32 (n >= 1, h, w, c)")
    if labels.dtype != np.int32 or labels.shape != (len(images),):
        raise BadInput(f"labels to batch: {labels.dtype}{labels.shape}, expected int32 ({len(images)},)")
    if not 0 <= process_index < process_count:
        raise BadInput(f"process_index {process_index}: expected within 0..{process_count - 1}")
    if batch_size < 1 or batch_size % process_count:
        raise BadInput(f"batch_size {batch_size}: expected a positive multiple of process_count {process_count}")
    if transform not in TRANSFORMS:
        raise BadInput(f"transform {transform!r}: expected one of {TRANSFORMS}")
