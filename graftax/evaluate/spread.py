"""Drawing in parts of one size, each spread over this host's devices; every image has noise of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from graftax import api
from graftax.diffusion import Sampling, image_keys
from graftax.errors import BadInput
from graftax.evaluate.drawing import require_finite
from graftax.models import Model
from graftax.train.sharding import MeshConfig, batch_sharding, replicated


@dataclass(frozen=True, eq=False)
class Spread:
    """A model that draws `part` images at a time on all devices of this host; made by `spread`.

    Attributes:
        model: its weights on every device.
        sampling: how each image is drawn.
        seed: of the noise; image i has its own.
        part: images of a compiled call.
        dtype: of the model's matrix products.
        sharding: of the images over the devices.
    """

    model: Model
    sampling: Sampling
    seed: int
    part: int
    dtype: str
    sharding: NamedSharding

    def draw(self, first: int, cond: Mapping[str, np.ndarray], null: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """Images `first`, first + 1, .. (part, h, w, c) float32 under conditions (n, ...) each, n <= part.

        Where they are fewer, they begin again, so that all calls have one shape. `null`: their unconditional twin; None: the
        model's own. Raises `NonFinite` where a number is none.
        """
        count = len(next(iter(cond.values())))
        keys = image_keys(jax.random.key(self.seed), first, self.part)
        given, twin, keys = jax.device_put((self._filled(cond), self._filled(null or {}), keys), self.sharding)
        drawn = api.sample(
            self.model, cond=given, null_cond=twin or None, sampling=self.sampling, rng=keys, dtype=jnp.dtype(self.dtype)
        )
        return require_finite(np.asarray(drawn), f"images {first} to {first + count - 1}")

    def _filled(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """(n, ...) -> (part, ...), from the start again."""
        return {name: np.take(values, range(self.part), 0, mode="wrap") for name, values in arrays.items()}


def spread(model: Model, sampling: Sampling, seed: int, part: int, dtype: str) -> Spread:
    """`model` on all devices of this host. Raises `BadInput` where `part` images do not divide over them."""
    devices = jax.local_devices()
    if part < 1 or part % len(devices):
        raise BadInput(f"images per part: got {part}, expected a multiple of {len(devices)} devices")
    mesh = MeshConfig().build(devices)
    params = jax.device_put(model.params, replicated(mesh))
    return Spread(model.replace(params=params), sampling, seed, part, dtype, batch_sharding(mesh))
