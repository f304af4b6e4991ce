"""What a model is looked at on: batches (x_t, t, conditions), from its own sampling trajectories or from noised data."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from graftax.api import sampler_steps, sampling_for
from graftax.diffusion import (
    Noising,
    SamplerState,
    Sampling,
    SamplingFields,
    heldout_set,
    image_keys,
    initial_noise,
    schedule,
    unit_noise,
    way_for,
)
from graftax.errors import BadInput, naming
from graftax.models import Cond, Model
from graftax.models.arguments import as_key
from graftax.models.backbone import find
from graftax.models.forward import prepare_params
from graftax.models.model import check_inputs, given_conditions, null_conditions
from graftax.models.prediction import given as given_to
from graftax.models.prediction import network_times
from graftax.models.prediction import noise_fraction as fraction_of
from graftax.ops.base import Params
from graftax.spec import ModelSpec
from graftax.train.loop import Batch
from graftax.train.noising import noising_for

Input = tuple[jax.Array, jax.Array, Cond]
"""x_t (b, h, w, c), t (b,) as the network takes it, and its conditions, for a class model {"y": (b,)}. `noised_batches`
makes them from data, `trajectory` without any."""


def trajectory(
    model: Model, labels: ArrayLike | None = None, *, cond: Mapping[str, ArrayLike] | None = None,
    null_cond: Mapping[str, ArrayLike] | None = None, sampling: Sampling | None = None, rng: jax.Array | None = None,
    batch_size: int = 50, dtype: DTypeLike | None = None, **settings: Unpack[SamplingFields],
) -> Iterator[Input]:  # fmt: skip
    """Everything that the model is called with while it draws samples of classes `labels` (n,), or for conditions `cond`.

    One batch per call of the model and chunk of `batch_size` samples, noisiest first; where it is guided each holds both
    halves of the pass, (2 b,) of them, the unconditional half last: `null_cond` (n, ..) or (1, ..), None: the model's own.
    Samples beyond a multiple of `batch_size` (or of n, if smaller) are left out. The samples are those of `graftax.sample`,
    whose other arguments these are. A DiT's defaults are those of the grafting paper's locality analysis (arXiv 2506.05340):
    50 DDIM steps, guidance 1.5. Image i depends on `rng` and i alone. Raises `BadInput` on labels, conditions and settings
    that do not fit.
    """
    sampling = sampling_for(model.spec, sampling, **settings)
    if batch_size < 1:
        raise BadInput(f"batch_size: got {batch_size}, expected 1 or more")
    if sampling.sampler in ("dopri5", "sde_heun") or sampling.churn:
        raise BadInput(f"sampling: got {sampling}, expected steps that are known, with no noise before the model is called")
    given = conditions_of(model.spec, labels, cond)
    null = None if null_cond is None else null_conditions(given, null_cond)
    return _walk(model, given, null, sampling, jax.random.key(0) if rng is None else as_key(rng), batch_size, dtype)


def noised_batches(
    spec: ModelSpec, heldout: Batch, process: Noising | None = None, seed: int = 0, batch_size: int = 64
) -> list[Input]:
    """A fixed held-out set (`graftax.diffusion.heldout_set`) as a model of `spec` takes it, in batches.

    heldout: image (n, h, w, c) and what the model is conditioned on, label (n,). `process` None: what such models are
    trained with. Raises `BadInput` where they do not fit `spec`.
    """
    found: list[Input] = []
    process = noising_for(spec, process)
    for data, number, noise in heldout_set(heldout, process, seed=seed, batch_size=batch_size).batches():
        x_t = process.q_sample(jnp.asarray(data["image"]), jnp.asarray(number), jnp.asarray(noise))
        t = network_times(spec.prediction, process.model_times(jnp.asarray(number)))
        cond = {name: jnp.asarray(value) for name, value in find(spec).condition(data).items()}
        with naming("held-out set"):
            check_inputs(spec, x_t, t, cond)
        found.append((x_t, t, cond))
    return found


def conditions_of(
    spec: ModelSpec, labels: ArrayLike | None, cond: Mapping[str, ArrayLike] | None = None
) -> dict[str, jax.Array]:
    """Classes `labels` (n,) and other conditions (n, ..) of images that are to be drawn, as `graftax.sample` takes them.

    Raises `BadInput` where they do not fit a model of `spec`.
    """
    given = given_conditions(labels, cond)
    count = number_of(given)
    check_inputs(spec, jnp.zeros((count, *spec.image_shape)), jnp.zeros(count), given)
    return given


def number_of(cond: Cond) -> int:
    """How many images conditions are for."""
    return len(next(iter(cond.values())))


def _walk(
    model: Model, cond: Cond, null: Cond | None, sampling: Sampling, root: jax.Array, batch_size: int,
    dtype: DTypeLike | None,
) -> Iterator[Input]:  # fmt: skip
    spec, count = model.spec, number_of(cond)
    size, way = min(batch_size, count), way_for(model.spec.prediction, sampling)
    prepared = prepare_params(spec, model.params)
    for start in range(0, count // size * size, size):
        part, twin = (rows_of(one, start, size) for one in (cond, null))
        assert part is not None
        keys = image_keys(root, start, size)
        state = SamplerState.begin(initial_noise(keys, sampling.steps, spec.image_shape) * way.start)
        calls = schedule(sampling, way)
        for call, t in enumerate(calls.timestep):
            x, times = given_to(spec.prediction, state.x, jnp.full(size, t), way.path)
            scale = sampling.cfg_scale if calls.guidance is None else float(calls.guidance[call])
            yield _guided_input(spec, prepared, x, times, part, twin, scale)
            state = _step(spec, prepared, call, state, part, twin, keys, sampling=sampling, dtype=dtype)


def rows_of(cond: Cond | None, start: int, size: int) -> Cond | None:
    """The conditions of images start .. start + size - 1; None of None."""
    return None if cond is None else {name: value[start : start + size] for name, value in cond.items()}


def _guided_input(
    spec: ModelSpec, prepared: Params, x: jax.Array, t: jax.Array, cond: Cond, null: Cond | None, cfg_scale: float
) -> Input:
    """What a guided pass looks at: (b, ..) -> (2 b, ..), the unconditional half last; without guidance as it is."""
    if cfg_scale == 1:
        return x, t, cond
    twin = find(spec).null(spec, prepared, cond) if null is None else null
    first, second = (x, t, dict(cond)), (x, t, dict(twin))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


@functools.partial(jax.jit, static_argnames=("spec", "sampling", "dtype"))
def _step(
    spec: ModelSpec, prepared: Params, call: jax.Array | int, state: SamplerState, cond: Cond, null: Cond | None,
    keys: jax.Array, *, sampling: Sampling, dtype: DTypeLike | None,
) -> SamplerState:  # fmt: skip
    steps = sampler_steps(spec, prepared, sampling, null, dtype)
    noise = unit_noise(keys, jnp.asarray(steps.numbers)[call], spec.image_shape) if sampling.noisy else None
    return steps(call, state, cond, noise)


# --- Bins of time ------------------------------------------------------------------------------------------------------


def noise_fraction(spec: ModelSpec, t: ArrayLike) -> np.ndarray:
    """Where in the process times t (b,), as a model of `spec` takes them, lie: 0 data, 1 noise, float64 (b,)."""
    return fraction_of(spec.prediction, np.asarray(t, np.float64))


def bin_of(fraction: ArrayLike, bins: int) -> np.ndarray:
    """Which of `bins` equal parts of [0, 1] each fraction of the process (b,) is in; edges belong to the noisier part."""
    # Edges as 0.29 x 100 fall short by rounding; fractions from float32 times by more.
    return np.clip(np.floor(np.asarray(fraction, np.float64) * bins + 1e-5), 0, bins - 1).astype(int)


class TimeBins:
    """Means over samples, sorted into equal bins of the process: values (b, *shape) in, float64 means out."""

    def __init__(self, bins: int, shape: tuple[int, ...]) -> None:
        if bins < 1:
            raise BadInput(f"bins: got {bins}, expected 1 or more")
        self._sums, self._counts = np.zeros((bins, *shape)), np.zeros(bins)

    def add(self, fraction: ArrayLike, values: ArrayLike) -> None:
        """Samples at fractions (b,) of the process (`noise_fraction`), their values (b, *shape)."""
        which = bin_of(fraction, len(self._counts))
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
