"""Pruning of depth by least harm: which blocks the output misses least, found by leaving them out one at a time."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax.analyze.harm import noised_batches, root_sum
from graftax.diffusion import Process
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.program_data import Instructions, encode, forward_any, prepare_any
from graftax.models.stack import Params
from graftax.surgery.report import is_plain
from graftax.train.loop import Batch

Harms = tuple[tuple[int, float], ...]
"""(block, harm) pairs."""


class SkipHarm:
    """`harm(blocks)`: ||output without these blocks - output|| / ||output|| of one model, 0 for none.

    Norms are over predicted noise and variance on a fixed held-out set (`noised_batches`, which says what `heldout`, `seed`
    and `batch_size` are). Which blocks are left out is data (`graftax.models.program_data`): one program is compiled for
    all choices. Raises `BadInput` on models with parallel, looped or scaled steps, and on held-out sets that do not fit.
    """

    def __init__(
        self, model: Model, heldout: Batch, *, process: Process | None = None, seed: int = 0, batch_size: int = 64,
        dtype: DTypeLike | None = None,
    ) -> None:  # fmt: skip
        self.spec = spec = model.spec
        if odd := [step for step in spec.program if not is_plain(step)]:
            raise BadInput(f"skip harm: {odd[0]}, expected a program of plain blocks")
        self._weights = prepare_any(spec, model.params)

        def predict(weights: Params, program: Instructions, *inputs: jax.Array) -> jax.Array:
            return forward_any(spec, weights, program, *inputs, dtype=dtype)

        def squares(weights: Params, program: Instructions, target: jax.Array, *inputs: jax.Array) -> jax.Array:
            return jnp.square(predict(weights, program, *inputs) - target).sum()

        self._squares, intact = jax.jit(squares), jax.jit(predict)
        batches = noised_batches(spec, heldout, process or Process(), seed, batch_size)
        self._batches = [(intact(self._weights, self._without(set()), *inputs), *inputs) for inputs in batches]
        self._norm = root_sum([jnp.square(target).sum() for target, *_ in self._batches])

    def __call__(self, blocks: Iterable[int]) -> float:
        """The harm of leaving out `blocks`. Raises `BadInput` on one that does not exist, and where none remains."""
        gone = set(blocks)
        if outside := sorted(i for i in gone if not 0 <= i < self.spec.depth):
            raise BadInput(f"block {outside[0]}: expected 0..{self.spec.depth - 1}")
        program = self._without(gone)
        return root_sum([self._squares(self._weights, program, *batch) for batch in self._batches]) / self._norm

    def _without(self, gone: set[int]) -> Instructions:
        whole = self.spec.program
        return encode(self.spec, [step for step in whole if step.blocks[0] not in gone], len(whole))


def rank_blocks(harm: SkipHarm) -> Harms:
    """All blocks with the harm of leaving out each alone, least harm first."""
    return tuple(sorted(((i, harm([i])) for i in range(harm.spec.depth)), key=lambda pair: pair[1]))


def prune(harm: SkipHarm, depth: int) -> Harms:
    """The blocks to leave out for `depth` to remain, greedily: in order, each with the joint harm of it and those before.

    Every round tries all blocks that are left and takes out the one whose loss does least harm.
    `graftax.drop(*(block for block, _ in found))` is the edit. Raises `BadInput` unless 1 <= depth <= the model's depth.
    """
    if not 1 <= depth <= harm.spec.depth:
        raise BadInput(f"prune: depth {depth}, expected 1..{harm.spec.depth}")
    gone: list[tuple[int, float]] = []
    while len(gone) < harm.spec.depth - depth:
        taken = [block for block, _ in gone]
        left = [i for i in range(harm.spec.depth) if i not in taken]
        gone.append(min(((i, harm([*taken, i])) for i in left), key=lambda pair: pair[1]))
    return tuple(gone)
