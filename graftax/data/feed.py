"""Data as people have it, made the endless stream of batches that training takes.

Arrays are shuffled and batched here. What gives batches by itself (iterators, grain's datasets) is taken as it comes, its
position kept where it has one, else counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax.data.pipeline import Arrays, read_threads, stream
from graftax.errors import BadInput
from graftax.progress import say
from graftax.spec import ModelSpec

KEYS = ("image", "label")
TEXT_KEYS = ("image", "text", "text_mask", "pooled", "guidance", "resolution", "aspect_ratio")
"""What batches of models hold that read a text; all but the first two only where a model takes it."""


def as_batches(data: Any, batch_size: int, seed: int = 0, spec: ModelSpec | None = None, also: tuple[str, ...] = ()) -> Any:
    """Endless batches {"image": (b, h, w, c), "label": (b,)}, for models that look at a text `TEXT_KEYS`, with `state()` and
    `restore(state)`, of any of these:

    - arrays: {"image": .., "label": ..} or (images, labels), whole sets in memory: batches of `batch_size`, every epoch in
      another order of `seed`, split over processes; for models of texts "text" and "text_mask" in place of "label";
    - an iterable of batches in either form: it is begun anew where it ends, and resumes by counting; an iterator, which
      cannot begin anew, ends the training where it ends;
    - a grain `MapDataset`, `IterDataset` or iterator of batches, which resumes at its exact position and ends where it ends
      (`repeat` makes it endless);
    - anything with `__next__`, `state` and `restore`, as it is.

    `also`: names of further arrays (n, ...) that a training takes, such as the features of a frozen encoder.

    Where there are several processes, each brings its own share of the batches, but for arrays. With a `spec` all but the
    last kind is held to what a model of it takes. Raises `BadInput` on other data, at once or when a batch comes.
    """
    import grain  # brings orbax, half a second that importing `graftax.train` need not take

    if all(hasattr(data, name) for name in ("__next__", "state", "restore")):
        return data
    if isinstance(data, Mapping) or (isinstance(data, tuple) and len(data) == 2):
        arrays = as_batch(data, spec)
        keys = TEXT_KEYS if _has_texts(arrays, spec) else KEYS
        return _from_memory(arrays, batch_size, seed, keys, also)
    if isinstance(data, grain.MapDataset):
        ahead = read_threads()  # grain's own default holds 500 batches in memory
        data = data.to_iter_dataset(grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead))
    if isinstance(data, grain.IterDataset):
        data = iter(data)
    if isinstance(data, grain.DatasetIterator):
        return GrainBatches(data, spec)
    if isinstance(data, Iterable) and not isinstance(data, str | np.ndarray | jax.Array):
        return CountedBatches(data, spec)
    raise BadInput(f"data: got {type(data).__name__}, expected arrays, an iterable of batches or a grain dataset")


def as_batch(batch: Any, spec: ModelSpec | None = None) -> dict[str, Any]:
    """A batch given as a mapping or as (image, label), held to what a model of `spec` takes.

    Raises `BadInput` on anything else: images that are not floats (b, h, w, c) or not of the model's size, labels that are
    not integers (b,) or name a class that the model does not know.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        batch = dict(zip(KEYS, batch, strict=True))
    if not isinstance(batch, Mapping) or "image" not in batch:
        found = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise BadInput(f"data: a batch is {found}, expected the keys {KEYS}, or a pair of images and labels")
    arrays = {name: _array(value) for name, value in batch.items()}
    image, label = arrays["image"], arrays.get("label")
    expected = "h, w, c" if spec is None else ", ".join(map(str, spec.image_shape))
    fits = image.ndim == 4 and (spec is None or image.shape[1:] == spec.image_shape)
    if not fits or not jnp.issubdtype(image.dtype, jnp.floating):
        raise BadInput(f"data image: {image.dtype}{image.shape}, expected batches of floats (b, {expected})")
    if spec is not None and _reads_text(spec) and len(arrays.get("text", ())) != len(image):
        found = {name: array.shape for name, array in arrays.items()}
        raise BadInput(f"data: a batch is {found}, expected text ({len(image)}, ...) beside image")
    if label is None:
        if spec is not None and spec.classes:
            raise BadInput(f"data: a batch is {sorted(arrays)}, expected label (b,) beside image")
        return arrays
    if label.shape != image.shape[:1] or not jnp.issubdtype(label.dtype, jnp.integer):
        raise BadInput(f"data label: {label.dtype}{label.shape}, expected integers ({len(image)},)")
    if spec is not None and spec.classes and len(label):
        low, high = (int(end) for end in (np.min(label), np.max(label)))
        if low < 0 or high > spec.classes:
            raise BadInput(f"data label: {low}..{high}, expected classes 0..{spec.classes - 1}, or {spec.classes} for none")
    return arrays


def _has_texts(arrays: Mapping[str, Any], spec: ModelSpec | None) -> bool:
    """Whether texts go with images, as the model says, or, where there is none, the arrays."""
    return "text" in arrays and "label" not in arrays if spec is None else _reads_text(spec)


def _reads_text(spec: ModelSpec) -> bool:
    """Whether a model is conditioned on texts: in a stream of their own, or looked at."""
    return bool(spec.sizes.context or spec.sizes.text) and not spec.classes


def _array(value: Any) -> Any:
    """A jax array as it is, anything else as numpy's; PyTorch's tensors are known by their methods alone."""
    if isinstance(value, jax.Array):
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value  # a type that numpy lacks
    return np.asarray(value)


def _from_memory(arrays: dict[str, Any], batch_size: int, seed: int, keys: tuple[str, ...], also: tuple[str, ...]) -> Any:
    if not {*keys[:2], *also} <= set(arrays) <= {*keys, *also}:
        raise BadInput(f"data: arrays {sorted(arrays)}, expected {(*keys, *also)}")
    whole = {name: np.asarray(array) for name, array in arrays.items()}
    whole["image"] = whole["image"].astype(np.float32, copy=False)
    if "label" in whole:
        whole["label"] = whole["label"].astype(np.int32, copy=False)
    return stream(Arrays(whole), batch_size, seed, jax.process_index(), jax.process_count())


class GrainBatches:
    """Batches of a grain iterator."""

    def __init__(self, iterator: Any, spec: ModelSpec | None = None) -> None:
        self._iterator, self._spec = iterator, spec

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return as_batch(next(self._iterator), self._spec)

    def state(self) -> Any:
        """Position of the next batch."""
        return self._iterator.get_state()

    def restore(self, state: Any) -> None:
        """Continue where `state` was taken."""
        self._iterator.set_state(state)


class CountedBatches:
    """Batches of an iterable, whose position is their number."""

    def __init__(self, data: Iterable[Any], spec: ModelSpec | None = None) -> None:
        self._data, self._spec, self._done, self._iterator = data, spec, 0, iter(data)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return as_batch(self._take(), self._spec)

    def _take(self) -> Any:
        try:
            batch = next(self._iterator)
        except StopIteration:
            if self._iterator is self._data:  # an iterator, which cannot begin anew
                raise
            self._iterator = iter(self._data)
            batch = next(self._iterator)
        self._done += 1
        return batch

    def state(self) -> dict[str, int]:
        """How many batches were taken."""
        return {"batches": self._done}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on to where `state` was taken. Raises `BadInput` where that lies behind, in an iterator, or beyond the end."""
        if state["batches"] < self._done:
            if self._iterator is self._data:
                raise BadInput(f"data: {self._done} batches were taken, an iterator cannot go back to {state['batches']}")
            self._iterator, self._done = iter(self._data), 0
        say(f"data: gives no position, so {state['batches'] - self._done} batches are read again to get there")
        try:
            while self._done < state["batches"]:
                self._take()
        except StopIteration:
            raise BadInput(f"data: ends after {self._done} batches, expected {state['batches']} and more") from None
