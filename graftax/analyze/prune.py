"""Pruning of depth by least harm: which blocks the output misses least, found by leaving them out one at a time."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from graftax.analyze.harm import noised_batches, root_sum
from graftax.diffusion import Process
from graftax.errors import BadInput
from graftax.models import Model, forward
from graftax.models.stack import Params
from graftax.spec import ModelSpec, block_key
from graftax.surgery.report import is_plain
from graftax.train.loop import Batch

Harms = tuple[tuple[int, float], ...]
"""(block, harm) pairs."""


class SkipHarm:
    """`harm(blocks)`: ||output without these blocks - output|| / ||output|| of one model, 0 for none.

    Norms are over predicted noise and variance on a fixed held-out set (`noised_batches`, which says what `heldout`, `seed`
    and `batch_size` are). Which blocks are left out is data: one program is compiled for all choices. Raises `BadInput` on
    models with parallel, looped or scaled steps or adapters, and on held-out sets that do not fit.
    """

    def __init__(
        self, model: Model, heldout: Batch, *, process: Process | None = None, seed: int = 0, batch_size: int = 64,
        dtype: DTypeLike | None = None,
    ) -> None:  # fmt: skip
        self.spec = spec = model.spec
        _check(spec)
        self._params = model.params

        def predict(params: Params, keep: jax.Array, *inputs: jax.Array) -> jax.Array:
            return forward(spec, _gated(spec, params, keep), *inputs, dtype=dtype)[0]

        def squares(params: Params, keep: jax.Array, target: jax.Array, *inputs: jax.Array) -> jax.Array:
            return jnp.square(predict(params, keep, *inputs) - target).sum()

        self._squares, intact, all_blocks = jax.jit(squares), jax.jit(predict), np.ones(spec.depth, np.float32)
        batches = noised_batches(spec, heldout, process or Process(), seed, batch_size)
        self._batches = [(intact(model.params, all_blocks, *inputs), *inputs) for inputs in batches]
        self._norm = root_sum([jnp.square(target).sum() for target, *_ in self._batches])

    def __call__(self, blocks: Iterable[int]) -> float:
        """The harm of leaving out `blocks`. Raises `BadInput` on one that does not exist."""
        gone = sorted(set(blocks))
        if outside := [i for i in gone if not 0 <= i < self.spec.depth]:
            raise BadInput(f"block {outside[0]}: expected 0..{self.spec.depth - 1}")
        keep = np.ones(self.spec.depth, np.float32)
        keep[gone] = 0
        return root_sum([self._squares(self._params, keep, *batch) for batch in self._batches]) / self._norm


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


def _gated(spec: ModelSpec, params: Params, keep: jax.Array) -> Params:
    """`params` with the gates of block i times keep[i]: at 0 both its residual updates vanish, and x passes unchanged."""

    def scaled(index: int, block: Params) -> Params:
        of_chunk = jnp.ones(6).at[jnp.array([2, 5])].set(keep[index])  # shift, scale, gate, twice
        return {**block, "adaln": jax.tree.map(lambda leaf: leaf * jnp.repeat(of_chunk, spec.hidden_size), block["adaln"])}

    return {**params, "blocks": {k: scaled(i, params["blocks"][k]) for i, k in enumerate(map(block_key, range(spec.depth)))}}


def _check(spec: ModelSpec) -> None:
    if odd := [step for step in spec.program if not is_plain(step)]:
        raise BadInput(f"skip harm: {odd[0]}, expected a program of plain blocks")
    if spec.adapters:
        raise BadInput("skip harm: the model has adapters, expected merge_lora() first")
