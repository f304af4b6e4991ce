"""Attention in a window of the sequence, with normed queries and keys and rotary positions."""

from __future__ import annotations

import jax

from graftax.errors import BadInput
from graftax.ops.attention_normed import MHANormed
from graftax.ops.base import Overrides, Shapes
from graftax.ops.window import banded_attention
from graftax.spec import OpSpec, Option, Sizes


class SWANormed(MHANormed):
    """`MHANormed` in which a token looks at those at most `window` before or after it in the sequence, text first: the
    grafting paper's window (`graftax.ops.window.SWA`) in the single blocks of Flux and AuraFlow. With the same weights.

    Attributes:
        window: how far a token sees.
    """

    window: int = 4

    kind = "swa_normed"
    torch_keys = ()

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return banded_attention(q, k, v, self.window)

    def attended(self) -> int:
        return min(2 * self.window + 1, self.tokens)  # as for `SWA`, at the ends as well

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        super().check(op, sizes)
        if op.option("window") < 1:
            raise BadInput(f"{cls.kind} window: got {op.option('window')}, expected 1 or more")

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        """Never: no file tells it from `MHANormed`."""
        return None
