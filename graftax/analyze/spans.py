"""Which contiguous blocks a model misses least: candidates for `graftax.drop(.., heal=..)`.

Sources: the cosine of a block's input and output as its influence, ShortGPT (arXiv 2403.03853), here of whole spans;
spans found by CKA and its first difference, PPCL (arXiv 2511.16156), without that paper's trained probes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jax.typing import DTypeLike

from graftax.analyze.cka import state_cka
from graftax.analyze.inputs import noised_batches
from graftax.analyze.prune import SkipHarm
from graftax.analyze.similarity import state_similarity
from graftax.diffusion import Noising
from graftax.errors import BadInput
from graftax.models import Model
from graftax.spec import ModelSpec
from graftax.surgery import drop
from graftax.surgery.restructure import HEALERS
from graftax.train.loop import Batch

MEASURES = ("cosine", "cka", "jump", "harm")


@dataclass(frozen=True)
class Span:
    """Blocks lo .. hi - 1 of one kind and what they do; every measure is 0 where they do nothing.

    Attributes:
        kind: of the blocks.
        lo: the first block's number.
        hi: that after the last.
        cosine: 1 - mean cosine of every token before the span and behind it.
        cka: 1 - CKA of the states before and behind.
        jump: the largest first difference inside, of the CKA with the state before the span: what one block changes most.
        harm: relative error of the model's output without the span, nothing healed.
    """

    kind: str
    lo: int
    hi: int
    cosine: float
    cka: float
    jump: float
    harm: float

    @property
    def edit(self) -> str:
        """That drops the span, its neighbour before it to heal, or behind it where there is none before."""
        return str(drop(*range(self.lo, self.hi), heal=HEALERS[self.lo == 0]))


def measure_spans(
    model: Model, heldout: Batch, length: int, *, process: Noising | None = None, seed: int = 0, batch_size: int = 64,
    dtype: DTypeLike | None = None,
) -> tuple[Span, ...]:  # fmt: skip
    """All spans of `length` blocks of one kind with what they do, in order, on a fixed set of noised images.

    `heldout`, `process`, `seed` and `batch_size` as in `graftax.analyze.noised_batches`. Raises `BadInput` where blocks do
    not run one by one in the order of their numbers, and where no kind has so many in a row and a block beside.
    """
    spec = model.spec
    if spec.program != spec.replace(program=()).program:
        raise BadInput("spans: a program of its own, expected blocks one after the other, as numbered")
    places = candidates(spec, length)
    inputs = noised_batches(spec, heldout, process, seed, batch_size)
    cosine = state_similarity(model, inputs, form="token", dtype=dtype)
    cka = state_cka(model, inputs, dtype=dtype)
    harm = SkipHarm(model, heldout, process=process, seed=seed, batch_size=batch_size, dtype=dtype)
    return tuple(
        Span(
            spec.blocks[lo].kind, lo, lo + length, 1 - float(cosine[lo, lo + length]), 1 - float(cka[lo, lo + length]),
            float(np.max(-np.diff(cka[lo, lo : lo + length + 1]))), harm(range(lo, lo + length)),
        )
        for lo in places
    )  # fmt: skip


def candidates(spec: ModelSpec, length: int) -> list[int]:
    """First blocks of all spans of `length` blocks of one kind. Raises `BadInput` where there is none."""
    kinds = [block.kind for block in spec.blocks]
    found = [lo for lo in range(spec.depth - length + 1) if len({*kinds[lo : lo + length]}) == 1]
    if not 1 <= length < spec.depth or not found:
        longest = max(kinds.count(kind) for kind in kinds)
        raise BadInput(
            f"spans: {length} blocks, expected 1 to {min(longest, spec.depth - 1)}, as many as there are of one kind"
        )
    return found


def least_spans(spans: Sequence[Span], measure: str = "cosine") -> dict[str, Span]:
    """By kind of block the span that does least. Raises `BadInput` on a measure that is none of `MEASURES`."""
    if measure not in MEASURES:
        raise BadInput(f"spans: measure {measure!r}, expected one of {MEASURES}")
    ordered = sorted(spans, key=lambda span: getattr(span, measure), reverse=True)
    return {span.kind: span for span in ordered}
