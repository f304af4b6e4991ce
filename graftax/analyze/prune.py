"""Pruning of depth by least harm: which blocks the output misses least, found by leaving them out one at a time."""

from __future__ import annotations

from collections.abc import Iterable

from jax.typing import DTypeLike

from graftax.analyze.inputs import noised_batches
from graftax.analyze.outputs import Outputs
from graftax.diffusion import Noising
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.library import Library
from graftax.spec import Step
from graftax.surgery.report import is_plain
from graftax.train.loop import Batch

Harms = tuple[tuple[int, float], ...]
"""(block, harm) pairs."""


class SkipHarm:
    """`harm(blocks)`: ||output without these blocks - output|| / ||output|| of one model, 0 for none.

    Norms are over prediction and variance on a fixed held-out set (`noised_batches`, which says what `heldout`, `seed` and
    `batch_size` are). Which blocks are left out is data (`graftax.models.library`): one program is compiled for all
    choices. Raises `BadInput` on models with parallel, looped or scaled steps, and on held-out sets that do not fit.

    Attributes:
        spec: the model's.
    """

    def __init__(
        self, model: Model, heldout: Batch, *, process: Noising | None = None, seed: int = 0, batch_size: int = 64,
        dtype: DTypeLike | None = None,
    ) -> None:  # fmt: skip
        self.spec = spec = model.spec
        if odd := [step for step in spec.program if not is_plain(step)]:
            raise BadInput(f"skip harm: {odd[0]}, expected a program of plain blocks")
        batches = noised_batches(spec, heldout, process, seed, batch_size)
        library = Library((spec,))
        weights = library.prepare(model.params)
        self._outputs = Outputs(library, weights, batches, capacity=len(spec.program), dtype=dtype)

    @property
    def compilations(self) -> int:
        """How often the model was compiled: once."""
        return self._outputs.compilations

    def __call__(self, blocks: Iterable[int]) -> float:
        """The harm of leaving out `blocks`, be it all of them. Raises `BadInput` on one that does not exist."""
        gone = set(blocks)
        if outside := sorted(i for i in gone if not 0 <= i < self.spec.depth):
            raise BadInput(f"block {outside[0]}: expected 0..{self.spec.depth - 1}")
        left = [step for step in self.spec.program if step.blocks[0] not in gone]
        return self._outputs.error(left or [Step((0,), alpha=0.0)])  # no program is empty; this one changes nothing


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
