"""Features of many images: one compiled batch after the other, spread over this host's devices."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from graftax.errors import BadInput
from graftax.evaluate.image_file import ImageFile
from graftax.evaluate.metrics import Gaussian, Moments
from graftax.progress import Progress

Features = Callable[[jax.Array], Any]
"""From images (b, h, w, c), uint8, to an array (b, d) or a tree of such arrays; it is compiled here. Weights belong into a
`jax.tree_util.Partial(function, weights)`: what a plain function closes over becomes part of the compiled program."""

BATCH = 64
"""Images per compiled call, ADM's."""


def extract(
    features: Features, images: ImageFile | np.ndarray, *, batch: int = BATCH, label: str = "features", show: bool = False,
    options: Mapping[str, str] | None = None,
) -> Iterator[Any]:  # fmt: skip
    """The trees that `features` gives for consecutive images, as numpy arrays with up to `batch` rows.

    Every call sees equally many images, a multiple of the devices, padded where the last are fewer: there is one
    compilation, with `options` as jax.jit takes them. The devices work on one batch while the caller uses the one before.
    Raises `BadInput` without images and where `batch` is below 1.
    """
    if batch < 1 or not len(images):
        raise BadInput(f"{label}: {len(images)} images in batches of {batch}, expected 1 or more of both")
    devices = jax.local_devices()
    batch = -(-min(batch, len(images)) // len(devices)) * len(devices)
    spread = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))
    function = features if isinstance(features, Partial) else Partial(features)
    function = jax.device_put(function, NamedSharding(spread.mesh, PartitionSpec()))
    run, waiting = jax.jit(lambda function, x: function(x), compiler_options=dict(options or {})), None
    with Progress(len(images), label, unit="image", show=show) as progress:
        for chunk in _chunks(images, batch):
            whole = np.concatenate([chunk, np.zeros((batch - len(chunk), *chunk.shape[1:]), chunk.dtype)])
            started = run(function, jax.device_put(whole, spread)), len(chunk)
            if waiting is not None:
                yield _fetch(*waiting)
                progress.advance(waiting[1])
            waiting = started
        if waiting is not None:
            yield _fetch(*waiting)
            progress.advance(waiting[1])


def feature_moments(
    features: Features, space: str, images: ImageFile | np.ndarray, *, batch: int = BATCH, show: bool = False
) -> Gaussian:
    """Moments of `features` (b, d) over images (n, h, w, c), for `frechet_distance` in any feature space.

    `space` names the network, its weights and the layer: distances are only taken between moments of equal name. Memory
    does not grow with the number of images. Where several processes run, each passes its own share of the images (at
    least one), and all get the moments of all. Raises `BadInput` as `extract` and `Moments` do.
    """
    parts = extract(features, images, batch=batch, label=space, show=show)
    first = next(parts)
    stream = Moments(first.shape[1], space)
    for rows in itertools.chain([first], parts):
        stream.add(rows)
    return over_hosts(stream).result()


def over_hosts(stream: Moments) -> Moments:
    """The streams of all processes merged in their order, the same on each; `stream` itself where there is one process."""
    if jax.process_count() == 1:
        return stream
    # As pairs of integers: JAX would round float64 to float32 on the way.
    rows = np.asarray(multihost_utils.process_allgather(stream.packed().view(np.uint32)))  # (processes, numbers)
    total = Moments(len(stream.mean), stream.space)
    for row in rows:
        total.merge(Moments.unpacked(row.view(np.float64), len(stream.mean), stream.space))
    return total


def _chunks(images: ImageFile | np.ndarray, size: int) -> Iterator[np.ndarray]:
    if isinstance(images, ImageFile):
        return images.batches(size)
    return (images[i : i + size] for i in range(0, len(images), size))


def _fetch(tree: Any, count: int) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], tree)
