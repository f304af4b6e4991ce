"""What a model is looked at on: batches (x_t, t, y), from its own sampling trajectories or from noised data."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from graftax.diffusion import Process, guided
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.dit import forward_prepared, prepare_params

Input = tuple[jax.Array, jax.Array, jax.Array]
"""x_t (b, h, w, c), t (b,) original timesteps in [0, 1000), y (b,) classes; `graftax.analyze.harm.noised_batches` makes
them from data, `trajectory` without any."""


def trajectory(
    model: Model, labels: ArrayLike, *, steps: int = 50, cfg_scale: float = 1.5, cfg_channels: int | None = 3,
    rng: jax.Array | None = None, batch_size: int = 50, dtype: DTypeLike | None = None,
) -> Iterator[Input]:  # fmt: skip
    """Everything that the model is called with while it draws samples of classes `labels` (n,) by deterministic DDIM.

    One batch per step and chunk of `batch_size` samples, noisiest step first; with guidance (cfg_scale not 1) each holds
    both halves of the guided pass, (2 b,) of them, the null class last. Samples beyond a multiple of `batch_size` (or of n,
    if smaller) are left out. The defaults are those of the grafting paper's locality analysis (arXiv 2506.05340: 50 DDIM
    steps, guidance 1.5, 250 samples); settings as in `graftax.sample`, whose DDIM samples these are. Raises `BadInput` on
    labels and settings that do not fit.
    """
    y = np.asarray(labels)
    if y.ndim != 1 or not len(y) or not np.issubdtype(y.dtype, np.integer) or batch_size < 1:
        raise BadInput(f"labels: {y.dtype}{y.shape} in batches of {batch_size}, expected (n,) integers, n >= 1")
    if y.min() < 0 or y.max() > model.spec.num_classes:
        raise BadInput(f"labels: {y.min()}..{y.max()}, expected within 0..{model.spec.num_classes}")
    process = Process().respaced(steps)
    step = jax.jit(partial(_ddim_step, model.spec, cfg_scale, cfg_channels, dtype))
    return _walk(model, y.astype(np.int32), process, step, cfg_scale, jax.random.key(0) if rng is None else rng, batch_size)


def _walk(model: Model, labels: np.ndarray, process: Process, step, cfg_scale: float, rng: jax.Array, batch_size: int):
    spec, size = model.spec, min(batch_size, len(labels))
    prepared = prepare_params(spec, model.params)
    for start in range(0, len(labels) // size * size, size):
        y = jnp.asarray(labels[start : start + size])
        x = jax.random.normal(jax.random.fold_in(rng, start), (size, spec.input_size, spec.input_size, spec.in_channels))
        for i in reversed(range(len(process))):
            t = jnp.full(size, process.timestep_map[i])
            if cfg_scale == 1:
                yield x, t, y
            else:
                yield (
                    jnp.concatenate([x, x]),
                    jnp.concatenate([t, t]),
                    jnp.concatenate([y, jnp.full_like(y, spec.num_classes)]),
                )
            x = step(prepared, x, t, y, process.tables.alpha_bar[i], process.tables.alpha_bar_prev[i])


def _ddim_step(spec, cfg_scale, cfg_channels, dtype, prepared, x, t, y, alpha_bar, alpha_bar_prev) -> jax.Array:
    """Song et al. 2020 (arXiv 2010.02502), Eq. 12 without noise: x_t -> x_{t-1}, (b, h, w, c)."""
    model_fn = guided(
        lambda x, t, y: forward_prepared(spec, prepared, x, t, y, dtype=dtype)[0], cfg_scale, spec.num_classes, cfg_channels
    )
    eps = model_fn(x, t, y)[..., : spec.in_channels]
    x0 = (x - jnp.sqrt(1 - alpha_bar) * eps) / jnp.sqrt(alpha_bar)
    return jnp.sqrt(alpha_bar_prev) * x0 + jnp.sqrt(1 - alpha_bar_prev) * eps


class TimeBins:
    """Means over samples, sorted into equal bins of their timestep: values (b, *shape) in, float64 means out."""

    def __init__(self, bins: int, shape: tuple[int, ...]) -> None:
        if bins < 1:
            raise BadInput(f"bins: got {bins}, expected 1 or more")
        self._sums, self._counts = np.zeros((bins, *shape)), np.zeros(bins)

    def add(self, t: ArrayLike, values: ArrayLike) -> None:
        """Samples at timesteps t (b,) in [0, 1000), their values (b, *shape)."""
        which = bin_of(t, len(self._counts))
        np.add.at(self._sums, which, np.asarray(values, np.float64))
        np.add.at(self._counts, which, 1)

    @property
    def mean(self) -> np.ndarray:
        """(*shape,): over all samples alike."""
        return self._sums.sum(0) / self._counts.sum()

    @property
    def by_time(self) -> np.ndarray:
        """(bins, *shape): per bin, bin 0 the cleanest; NaN where no sample was."""
        counts = self._counts.reshape(-1, *[1] * (self._sums.ndim - 1))
        return np.divide(self._sums, counts, out=np.full_like(self._sums, np.nan), where=counts > 0)


def bin_of(t: ArrayLike, bins: int) -> np.ndarray:
    """Which of `bins` equal parts of [0, 1000) each timestep (b,) is in."""
    return np.clip(np.asarray(t) * bins // 1000, 0, bins - 1).astype(int)
