"""From a DiT to an encoder of conditions and a decoder that they modulate token by token, as an edit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from graftax.blocks.ddt import KINDS
from graftax.errors import BadInput
from graftax.ops.base import Params
from graftax.spec import BlockSpec, ModelSpec
from graftax.surgery.edits import Edit, integer


@dataclass(frozen=True)
class Decouple(Edit):
    """See `decouple`.

    Attributes:
        encoder: steps of the program that become the encoder.
    """

    encoder: int
    name = "decouple"

    def on(self, spec: ModelSpec) -> ModelSpec:
        if not 1 <= self.encoder < len(spec.program):
            raise BadInput(f"{self}: of a program of {len(spec.program)} steps, expected 1..{len(spec.program) - 1}")
        stages = spec.program[: self.encoder], spec.program[self.encoder :]
        first, second = ({i for step in stage for i in step.blocks} for stage in stages)
        if both := sorted(first & second):
            raise BadInput(f"{self}: block {both[0]} would run in both stages, expected each block in one")
        if others := [i for i, block in enumerate(spec.blocks) if block.kind != "dit"]:
            raise BadInput(f"{self}: block {others[0]} is of the kind {spec.blocks[others[0]].kind!r}, expected 'dit'")
        blocks = (BlockSpec(KINDS[i in second], block.ops) for i, block in enumerate(spec.blocks))
        return spec.with_frame(decoupled=True).replace(blocks=tuple(blocks))

    def weights(self, spec: ModelSpec, after: ModelSpec, params: Params, rng: jax.Array | None) -> Params:
        return params

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.encoder,), {}


def decouple(encoder: int) -> Decouple:
    """Let the first `encoder` steps of a DiT be an encoder, and the others a decoder that it conditions: `decouple(22)`.

    Both begin with the image's tokens; the decoder's modulations, and the last one, get for every token what the encoder
    made of it, plus the time, in place of time and class (DDT: Wang et al., arXiv 2504.05741, Section 3.2). No weight
    changes, but the function does: the decoder's blocks meet tokens that nothing has worked on yet, under conditions that
    they do not know. `graftax.distill.fit_decoupled` fits their modulations by least squares, stage 2 teaches the rest; then
    the encoder need not run in every step of a drawing (`Sampling.refresh`).

    Raises `BadInput`, when it runs, where a stage would have no steps or a block would be in both, and on other blocks.
    """
    return Decouple(integer("decouple", encoder))
