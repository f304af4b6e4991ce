"""How activations behave: mean, spread, tails and extremes of what operators put out, streamed in one pass.

The grafting paper (arXiv 2506.05340, Section 3) chooses L1 for token mixers because their outputs have large variance and
heavy tails that grow with depth, to which squared errors are sensitive. These are the numbers behind such a choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from graftax.analyze.inputs import Input, bin_of, noise_fraction
from graftax.blocks import Taps, tapped_slots
from graftax.errors import BadInput
from graftax.models import Cond, Model
from graftax.models.forward import embed, prepare_params
from graftax.models.sizes import at_size
from graftax.models.stack import check_capture, run_stack, tap_runs
from graftax.ops.base import Params
from graftax.progress import Progress
from graftax.spec import ModelSpec


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and central moment sums of some numbers, arrays of one shape in float64, that can be merged.

    Attributes:
        count: how many numbers.
        mean: of them.
        m2: sum of (x - mean)^2.
        m3: sum of (x - mean)^3.
        m4: sum of (x - mean)^4.
        peak: largest |x|.
    """

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    m3: np.ndarray
    m4: np.ndarray
    peak: np.ndarray

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Moments:
        """Of no numbers."""
        return cls(*(np.zeros(shape) for _ in range(6)))

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Of values (*shape, m), over the last axis."""
        values = np.asarray(values, np.float64)
        mean = values.mean(-1)
        e = values - mean[..., None]
        count = np.full(mean.shape, float(values.shape[-1]))
        return cls(count, mean, (e**2).sum(-1), (e**3).sum(-1), (e**4).sum(-1), abs(values).max(-1))

    def merge(self, other: Moments) -> Moments:
        """Of both sets of numbers together (Pebay 2008, SAND2008-6212, Eq. 2.1; Chan et al. 1979 for the variance)."""
        a, b = self, other
        n = a.count + b.count
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = (np.where(n > 0, part / n, 0.0) for part in (a.count, b.count))  # shares
        delta = b.mean - a.mean
        w = a.count * v  # n_a n_b / n
        m2 = a.m2 + b.m2 + delta**2 * w
        m3 = a.m3 + b.m3 + delta**3 * w * (u - v) + 3 * delta * (u * b.m2 - v * a.m2)
        m4 = a.m4 + b.m4 + delta**4 * w * (u**2 - u * v + v**2) + 6 * delta**2 * (u**2 * b.m2 + v**2 * a.m2)
        m4 += 4 * delta * (u * b.m3 - v * a.m3)
        return Moments(n, a.mean + delta * v, m2, m3, m4, np.maximum(a.peak, b.peak))

    def sum(self, axis: int) -> Moments:
        """All parts along `axis` merged."""
        parts = [Moments(*part) for part in zip(*(np.moveaxis(leaf, axis, 0) for leaf in self._leaves), strict=True)]
        merged = parts[0]
        for part in parts[1:]:
            merged = merged.merge(part)
        return merged

    @property
    def std(self) -> np.ndarray:
        """Standard deviation (of the population); NaN of no numbers."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.sqrt(self.m2 / self.count)

    @property
    def kurtosis(self) -> np.ndarray:
        """E[(x - mean)^4] / std^4: 3 of a Gaussian, 6 of a Laplacian, more of heavier tails; NaN of no spread."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.count * self.m4 / self.m2**2

    @property
    def _leaves(self) -> tuple[np.ndarray, ...]:
        return self.count, self.mean, self.m2, self.m3, self.m4, self.peak


@dataclass(frozen=True, eq=False)
class Activations:
    """One tap of a model, or one stream of it.

    Attributes:
        tap: its name, with the stream where there are several: "attn/out:img".
        blocks: (l,) blocks that have it, in the order in which they run.
        whole: (l,) per run of a block.
        by_time: (bins, l) the same per bin of time, bin 0 the cleanest.
    """

    tap: str
    blocks: tuple[int, ...]
    whole: Moments
    by_time: Moments


def activation_statistics(
    model: Model, inputs: Iterable[Input], taps: Sequence[str] | None = None, *, bins: int = 10,
    dtype: DTypeLike | None = None, total: int = 0,
) -> dict[str, Activations]:  # fmt: skip
    """Statistics of every layer's activations at `taps`, over samples, tokens, channels and times.

    `taps`: names of the model's taps, by default the outputs of all operators that have any (`tapped_slots`), which are
    taken before the gate, as in stage 1, which has to fit them. A tap with several streams gives one entry for each,
    "attn/out:img". `inputs`: batches (x_t, t, conditions), such as `graftax.analyze.trajectory` gives. Each sample is
    reduced on the device, about its own mean; moments are merged in float64. `total`: number of batches, to show progress
    (0: none shown). Raises `BadInput` on unknown taps and where there is no input.
    """
    if bins < 1:
        raise BadInput(f"bins: got {bins}, expected 1 or more")
    spec = model.spec
    taps = tuple(f"{slot}/out" for slot in tapped_slots(spec)) if taps is None else tuple(taps)
    check_capture(spec, taps)
    prepared = prepare_params(spec, model.params)
    reduce = jax.jit(partial(_sample_moments, spec, taps, dtype))
    found: dict[str, list[Moments]] = {}
    with Progress(total, "activations", unit="batch", show=total > 0) as progress:
        for x, t, cond in inputs:
            for name, parts in jax.device_get(reduce(prepared, x, t, cond)).items():
                samples = Moments(*parts.astype(np.float64))
                so_far = found.setdefault(name, [Moments.empty(samples.count.shape[:1]) for _ in range(bins)])
                _sort_in(so_far, samples, bin_of(noise_fraction(spec, t), bins))
            progress.advance()
    if not found:
        raise BadInput("activations: no inputs, expected at least one batch")
    order = sorted(found, key=lambda name: (taps.index(_tap_of(name)), name))
    return {name: _activations(spec, name, found[name]) for name in order}


def _activations(spec: ModelSpec, name: str, parts: list[Moments]) -> Activations:
    by_time = Moments(*(np.stack(leaves) for leaves in zip(*(part._leaves for part in parts), strict=True)))
    return Activations(name, tap_runs(spec, _tap_of(name)), by_time.sum(0), by_time)


def _tap_of(name: str) -> str:
    """The tap of one of its streams."""
    return name.partition(":")[0]


def _sort_in(found: list[Moments], samples: Moments, which: np.ndarray) -> None:
    """Merge the moments (l, b) of single samples into their bins."""
    for bin in np.unique(which):
        chosen = Moments(*(leaf[:, which == bin] for leaf in samples._leaves))
        found[bin] = found[bin].merge(chosen.sum(1))


def _sample_moments(
    spec: ModelSpec, taps: tuple[str, ...], dtype: DTypeLike | None, prepared: Params, x: jax.Array, t: jax.Array, cond: Cond
) -> dict[str, jax.Array]:
    """{tap: (6, l, b)}: the fields of `Moments` for every run of a block and sample."""
    spec = at_size(spec, x)
    state, context = embed(spec, prepared, x, t, cond, dtype)
    _, found = run_stack(spec, prepared["blocks"], state, context, capture=taps, dtype=dtype)
    return {name: _device_moments(tap.reshape(*tap.shape[:2], -1)) for name, tap in _by_stream(found, taps).items()}


def _by_stream(found: Taps, taps: tuple[str, ...]) -> dict[str, jax.Array]:
    """Each stream of a tap that has several by itself, "attn/out:img"; other taps as they are."""
    flat: dict[str, jax.Array] = {}
    for name in taps:
        tap = found[name]
        flat |= {f"{name}:{stream}": array for stream, array in tap.items()} if isinstance(tap, dict) else {name: tap}
    return flat


def _device_moments(values: jax.Array) -> jax.Array:
    """`Moments` of (l, b, m) over the last axis, two passes: (6, l, b)."""
    values = values.astype(jnp.float32)
    mean = values.mean(-1)
    e = values - mean[..., None]
    sums = [(e**p).sum(-1) for p in (2, 3, 4)]
    return jnp.stack([jnp.full_like(mean, values.shape[-1]), mean, *sums, abs(values).max(-1)])
