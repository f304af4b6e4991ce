"""The output of a model as it is on fixed inputs, and how far off it is with other programs or operators, compiled once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from graftax.analyze.inputs import Input
from graftax.errors import BadInput
from graftax.models.library import Choice, Instructions, Library
from graftax.ops.base import Params
from graftax.spec import Step


class Outputs:
    """What a library's models put out on fixed inputs, beside what the first of them puts out as it is.

    `inputs` (batches of equal size) and the intact output of each stay on the device, with `weights`, which
    `library.prepare` has made. What runs is data: `compilations` stays 1 whatever that is. `capacity`: runs of blocks that a
    program may have. Raises `BadInput` where there is no input.

    Attributes:
        compilations: of the pass through the model, so far.
    """

    def __init__(
        self, library: Library, weights: Params, inputs: Iterable[Input], *, capacity: int, dtype: DTypeLike | None = None
    ) -> None:
        self.compilations = 0
        self._library, self._capacity, self._weights = library, capacity, weights

        def predict(weights: Params, instructions: Instructions, *batch: Any) -> jax.Array:
            self.compilations += 1  # runs when JAX traces, not when it runs
            return library.forward(weights, instructions, *batch, dtype=dtype)

        # Comparing is a program of its own: were it one with the pass, the intact outputs would need another.
        self._predict = jax.jit(predict)
        intact = library.encode(capacity=capacity)
        self._batches = [(batch, self._predict(self._weights, intact, *batch)) for batch in inputs]
        if not self._batches:
            raise BadInput("no inputs, expected at least one batch")
        self._norm = _root_sum(_squares(out, None) for _, out in self._batches)

    def compared(
        self, program: Sequence[Step] | None = None, choice: Choice | None = None
    ) -> Iterator[tuple[Input, jax.Array, jax.Array]]:
        """For every batch: the batch, the output (b, h, w, c) of `program` and `choice`, and the intact one.

        Raises `BadInput` on what the library cannot run (`Library.encode`).
        """
        instructions = self._library.encode(program, choice, self._capacity)
        for batch, intact in self._batches:
            yield batch, self._predict(self._weights, instructions, *batch), intact

    def error(self, program: Sequence[Step] | None = None, choice: Choice | None = None) -> float:
        """||output - intact output|| / ||intact output||, norms over all inputs and channels."""
        return _root_sum(_squares(out, intact) for _, out, intact in self.compared(program, choice)) / self._norm


@jax.jit
def _squares(out: jax.Array, intact: jax.Array | None) -> jax.Array:
    return jnp.square(out if intact is None else out - intact).sum()


def _root_sum(squares: Iterable[jax.Array]) -> float:
    """Square root of a sum of () arrays, added up in float64."""
    return float(np.sqrt(np.sum(jax.device_get(list(squares)), dtype=np.float64)))
