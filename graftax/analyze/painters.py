"""Layers as painters: what a model still does when its blocks are skipped, repeated, reordered or run side by side.

After "Transformer Layers as Painters" (arXiv 2407.09298): no weight changes, only the order. Orders run as data
(`graftax.models.library`), so that one compilation serves all of them, whatever kinds of blocks a model has. Errors are
those of the prediction, the noise for a DiT, without its variance, the velocity for a flow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from graftax.analyze.inputs import Input, TimeBins, conditions_of, noise_fraction, number_of, rows_of
from graftax.analyze.outputs import Outputs
from graftax.analyze.strategies import Program, Strategy
from graftax.api import sampling_for
from graftax.diffusion import Sampling, denoise, guided, image_keys, initial_noise, way_for
from graftax.errors import BadInput, naming
from graftax.models import Cond, Model
from graftax.models.arguments import as_key
from graftax.models.backbone import find
from graftax.models.library import CAPACITY, Instructions, Library
from graftax.models.model import null_conditions
from graftax.models.prediction import as_called
from graftax.ops.base import Params
from graftax.progress import Progress


@dataclass(frozen=True, eq=False)
class Deviation:
    """How far a program's prediction is from the intact model's, over all inputs together.

    Attributes:
        error: ||prediction - intact prediction|| / ||intact prediction||.
        cosine: of the two as one vector each.
        by_time: (bins,) the error per bin of time, bin 0 the cleanest, NaN where no input was.
    """

    error: float
    cosine: float
    by_time: np.ndarray


class OutputError:
    """`error(program)` -> `Deviation`: any order of a model's blocks against the intact model, on fixed inputs.

    `inputs`: batches (x_t, t, conditions) of equal size, as `graftax.analyze.trajectory` and
    `graftax.analyze.noised_batches` give them; they stay on the device with the intact model's output, and with one more
    copy of the blocks' weights, which may be given (`weights`, from `Library((spec,)).prepare`) to be shared. The program is
    data: `compilations` stays 1 whatever is run, up to `capacity` runs of blocks. Raises `BadInput` where there is no input.

    Attributes:
        spec: the model's.
    """

    def __init__(
        self, model: Model, inputs: Iterable[Input], *, bins: int = 10, dtype: DTypeLike | None = None,
        capacity: int = CAPACITY, weights: Params | None = None,
    ) -> None:  # fmt: skip
        self.spec, self._bins = model.spec, bins
        library = Library((self.spec,))
        weights = library.prepare(model.params) if weights is None else weights
        with naming("painters"):
            self._outputs = Outputs(library, weights, inputs, capacity=capacity, dtype=dtype)

    @property
    def compilations(self) -> int:
        """How often the model was compiled."""
        return self._outputs.compilations

    def __call__(self, program: Program) -> Deviation:
        """Raises `BadInput` on programs that the model cannot run or that exceed the capacity."""
        found, channels = TimeBins(self._bins, (4,)), self.spec.option("channels")
        for (_, t, _), out, intact in self._outputs.compared(program):
            found.add(noise_fraction(self.spec, t), _compare(out[..., :channels], intact[..., :channels]))
        error, product, own, intact = found.mean
        by_time = found.by_time
        cosine = product / np.sqrt(own * intact) if own else 0.0
        return Deviation(float(np.sqrt(error / intact)), float(cosine), np.sqrt(by_time[:, 0] / by_time[:, 3]))

    def measure(self, chosen: Sequence[Strategy], *, label: str = "strategies", show: bool = True) -> list[Deviation]:
        """All `chosen` in order, with progress."""
        with Progress(len(chosen), label, unit="strategy", show=show) as progress:
            found = []
            for strategy in chosen:
                found.append(self(strategy.program))
                progress.advance()
        return found


class ProgramSampler:
    """`draw(program)` -> images (n, h, w, c) of one set of labels and one noise: what each order of the blocks paints.

    labels (n,) int, or `cond` for models that take other conditions than classes, with `null_cond`, and `sampling` (None: as
    the model's family draws, a DiT in 50 steps of DDIM) as in `graftax.sample`, as is the noise: image i depends on `rng`
    and i alone. `batch_size`: images per call, which must divide their number (None: all); `weights` as in `OutputError`.
    Compiled once for all programs: `compilations` counts. Raises `BadInput` on labels, conditions, samplings and sizes that
    do not fit.

    Attributes:
        spec: the model's.
        compilations: of the sampler, so far.
    """

    def __init__(
        self, model: Model, labels: ArrayLike | None = None, sampling: Sampling | None = None, *,
        cond: Mapping[str, ArrayLike] | None = None, null_cond: Mapping[str, ArrayLike] | None = None,
        rng: jax.Array | None = None, dtype: DTypeLike | None = None, capacity: int = CAPACITY,
        batch_size: int | None = None, weights: Params | None = None,
    ) -> None:  # fmt: skip
        self.spec = spec = model.spec
        how, given = sampling_for(spec, sampling), conditions_of(spec, labels, cond)
        if how.skip:
            raise BadInput(f"skip: got {how.skip}, expected none here: programs change")
        way = way_for(spec.prediction, how)
        self._capacity, self._library = capacity, (library := Library((spec,)))
        self._weights = library.prepare(model.params) if weights is None else weights
        null = None if null_cond is None else null_conditions(given, null_cond)
        keys = image_keys(jax.random.key(0) if rng is None else as_key(rng), 0, count := number_of(given))
        size = count if batch_size is None else batch_size
        if size < 1 or count % size:
            raise BadInput(f"batch_size: got {size}, expected a divisor of {count} images")
        starts = range(0, count, size)
        self._batches = [(rows_of(given, i, size), rows_of(null, i, size), keys[i : i + size]) for i in starts]
        self.compilations = 0

        def draw(weights: Params, instructions: Instructions, cond: Cond, null: Cond | None, keys: jax.Array) -> jax.Array:
            self.compilations += 1  # runs when JAX traces, not when it runs

            def model_fn(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
                return library.forward(weights, instructions, x, t, cond, dtype)

            def twin(cond: Any) -> Any:
                return find(spec).null(spec, weights, cond) if null is None else null

            own = as_called(spec.prediction, model_fn, way.target, way.path)
            guide = guided(own, how.cfg_scale, twin, how.cfg_channels, varies=how.varies)
            return denoise(guide, how, initial_noise(keys, how.steps, spec.image_shape), cond, keys, way=way)

        self._draw = jax.jit(draw)

    def __call__(self, program: Program) -> np.ndarray:
        """Raises `BadInput` on programs that the model cannot run or that exceed the capacity."""
        instructions = self._library.encode(program, capacity=self._capacity)
        return np.concatenate([self._draw(self._weights, instructions, *batch) for batch in self._batches])


@jax.jit
def _compare(out: jax.Array, intact: jax.Array) -> jax.Array:
    """Per sample the sums of squared error, product, square and squared target: (b, h, w, c) twice -> (b, 4)."""
    sums = (jnp.square(out - intact), out * intact, jnp.square(out), jnp.square(intact))
    return jnp.stack([part.sum((1, 2, 3)) for part in sums], axis=-1)
