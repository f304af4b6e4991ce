"""The one way in which held-out data are noised: evenly spread times, fixed noise, so that two models meet the same sum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from graftax.diffusion.flow import Noising
from graftax.errors import BadInput


class Heldout(NamedTuple):
    """A fixed held-out set.

    Attributes:
        data: arrays (n, ...) by name: "image" (n, h, w, c) float32, clean, and what goes with it, "label" (n,) int32.
        t: (n,), times of the process: int32 steps, or float32 noise fractions of a flow.
        noise: (n, h, w, c) float32.
        size: images that are taken at a time; n is a multiple of it.
    """

    data: dict[str, np.ndarray]
    t: np.ndarray
    noise: np.ndarray
    size: int

    def batches(self) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]]:
        """Data, t and noise of `size` images at a time."""
        for start in range(0, len(self.t), self.size):
            part = slice(start, start + self.size)
            yield {name: array[part] for name, array in self.data.items()}, self.t[part], self.noise[part]


def heldout_set(data: Mapping[str, Any], process: Noising, *, seed: int = 0, batch_size: int = 256) -> Heldout:
    """The held-out set of `data`: image (n, h, w, c), and what else a batch has, such as label (n,).

    The times cover the process evenly, one per image in an order drawn from `seed`, as is the noise: little variance comes
    from t. Images beyond a multiple of `batch_size` (or of n, if smaller) are left out. Raises BadInput if there are no
    images, other arrays do not go with them, or `batch_size` is below 1.
    """
    arrays = {name: np.asarray(value) for name, value in data.items()}
    image = arrays["image"] = arrays["image"].astype(np.float32, copy=False)
    if "label" in arrays:
        arrays["label"] = arrays["label"].astype(np.int32, copy=False)
    if image.ndim != 4 or not len(image) or any(array.shape[:1] != image.shape[:1] for array in arrays.values()):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise BadInput(f"held-out set: {shapes}, expected image (n, h, w, c), n >= 1, and (n, ...) each")
    if batch_size < 1:
        raise BadInput(f"held-out set: batch_size {batch_size}, expected 1 or more")
    size = min(batch_size, len(image))
    count = len(image) // size * size
    rng = np.random.default_rng(seed)
    t = rng.permutation(process.at((np.arange(count) + 0.5) / count))
    noise = rng.standard_normal(image[:count].shape, np.float32)
    return Heldout({name: array[:count] for name, array in arrays.items()}, t, noise, size)
