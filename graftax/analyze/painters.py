"""Layers as painters: what a model still does when its blocks are skipped, repeated, reordered or run side by side.

After "Transformer Layers as Painters" (arXiv 2407.09298): no weight changes, only the order. Orders run as data
(`graftax.models.program_data`), so that one compilation serves all of them. Errors are those of the predicted noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from graftax.analyze.inputs import Input, TimeBins
from graftax.analyze.strategies import Program, Strategy
from graftax.diffusion import Process, Sampler, guided
from graftax.diffusion import sample as denoise
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.program_data import CAPACITY, Instructions, encode, forward_any, prepare_any
from graftax.models.stack import Params
from graftax.progress import Progress


@dataclass(frozen=True, eq=False)
class Deviation:
    """How far a program's predicted noise is from the intact model's, over all inputs together.

    `error`: ||noise - intact noise|| / ||intact noise||; `cosine`: of the two as one vector each; `by_time` (bins,): the
    error per bin of timesteps, bin 0 the cleanest, NaN where no input was.
    """

    error: float
    cosine: float
    by_time: np.ndarray


class OutputError:
    """`error(program)` -> `Deviation`: any order of a model's blocks against the intact model, on fixed inputs.

    `inputs`: batches (x_t, t, y) of equal size, as `graftax.analyze.trajectory` and `graftax.analyze.noised_batches` give
    them; they stay on the device with the intact model's output, and with one more copy of the blocks' weights. The program
    is data: `compilations` stays 1 whatever is run, up to `capacity` runs of blocks. Raises `BadInput` where there is no
    input.
    """

    def __init__(
        self,
        model: Model,
        inputs: Iterable[Input],
        *,
        bins: int = 10,
        dtype: DTypeLike | None = None,
        capacity: int = CAPACITY,
    ) -> None:
        self.spec, self._bins, self._capacity = model.spec, bins, capacity
        self._weights = prepare_any(model.spec, model.params)
        self.compilations = 0

        def noise(weights: Params, instructions: Instructions, *args: jax.Array) -> jax.Array:
            self.compilations += 1  # runs when JAX traces, not when it runs
            return forward_any(self.spec, weights, instructions, *args, dtype=dtype)[..., : self.spec.in_channels]

        # The comparison is a program of its own: were it one with the pass, the intact model's targets would need another.
        self._noise, self._compare = jax.jit(noise), jax.jit(_compare)
        intact = self._encode(self.spec.program)
        self._batches = [(batch, self._noise(self._weights, intact, *batch)) for batch in inputs]
        if not self._batches:
            raise BadInput("painters: no inputs, expected at least one batch")

    def __call__(self, program: Program) -> Deviation:
        """Raises `BadInput` on programs that the model cannot run or that exceed the capacity."""
        instructions, found = self._encode(program), TimeBins(self._bins, (4,))
        for batch, target in self._batches:
            found.add(batch[1], self._compare(self._noise(self._weights, instructions, *batch), target))
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

    def _encode(self, program: Program) -> Instructions:
        return encode(self.spec, program, self._capacity)


class ProgramSampler:
    """`draw(program)` -> images (n, h, w, c) of one set of labels and one noise: what each order of the blocks paints.

    labels (n,) int; settings as in `graftax.sample`. Compiled once for all programs: `compilations` counts. Raises
    `BadInput` on settings that do not fit.
    """

    def __init__(
        self, model: Model, labels: ArrayLike, *, sampler: Sampler = "ddim", steps: int = 50, cfg_scale: float = 1.5,
        cfg_channels: int | None = 3, eta: float = 0.0, rng: jax.Array | None = None, dtype: DTypeLike | None = None,
        capacity: int = CAPACITY,
    ) -> None:  # fmt: skip
        self.spec = spec = model.spec
        self._capacity, self._labels = capacity, jnp.asarray(labels)
        self._weights = prepare_any(spec, model.params)
        self._key = jax.random.key(0) if rng is None else rng
        self.compilations = 0
        process = Process().respaced(steps)
        shape = (len(self._labels), spec.input_size, spec.input_size, spec.in_channels)

        def draw(weights: Params, instructions: Instructions, labels: jax.Array, key: jax.Array) -> jax.Array:
            self.compilations += 1

            def model_fn(*args: jax.Array) -> jax.Array:
                return forward_any(spec, weights, instructions, *args, dtype=dtype)

            x = jax.random.normal(jax.random.fold_in(key, steps), shape)  # that of `graftax.sample`
            guide = guided(model_fn, cfg_scale, spec.num_classes, cfg_channels)
            return denoise(guide, process, x, labels, key, sampler, eta)

        self._draw = jax.jit(draw)

    def __call__(self, program: Program) -> np.ndarray:
        """Raises `BadInput` on programs that the model cannot run or that exceed the capacity."""
        instructions = encode(self.spec, program, self._capacity)
        return np.asarray(self._draw(self._weights, instructions, self._labels, self._key))


def _compare(noise: jax.Array, target: jax.Array) -> Any:
    """Per sample the sums of squared error, product, square and squared target: (b, h, w, c) twice -> (b, 4)."""
    sums = (jnp.square(noise - target), noise * target, jnp.square(noise), jnp.square(target))
    return jnp.stack([part.sum((1, 2, 3)) for part in sums], axis=-1)
