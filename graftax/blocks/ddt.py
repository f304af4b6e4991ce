"""The blocks of DDT (Wang et al., arXiv 2504.05741): a condition encoder, and the velocity decoder that it conditions.

Both are DiT's block on a stream of their own. The encoder's stream "cond" (b, n, d) is conditioned on time and class as in
any DiT; the decoder's "img" (b, n, d) on the encoder's tokens, each token on its own. So the two stages are one program over
one state: whatever order a rewrite gives the blocks is well typed, parallel steps and loops over the border included, and a
decoder block always looks at the encoder's stream as it is by then. The alternative, an executor that knows two stages and
changes the context between them, would have no answer to a program that goes back.
"""

from __future__ import annotations

import dataclasses

import jax

from graftax.blocks.base import Context, State
from graftax.blocks.dit import DiTBlock, dit_slots


class DDTEncoder(DiTBlock):
    """`DiTBlock` on the stream "cond"."""

    kind = "ddt_encoder"
    stream = "cond"
    slots = dit_slots(stream="cond")


class DDTDecoder(DiTBlock):
    """`DiTBlock` on the stream "img" whose `vec` is, for every token, the encoder's plus the time."""

    kind = "ddt_decoder"
    slots = dit_slots(each=True)

    def under(self, state: State, context: Context) -> Context:
        return dataclasses.replace(context, vec=token_vec(state, context), shared={})


def token_vec(state: State, context: Context) -> jax.Array:
    """What conditions the decoder, and the output layer behind it: the encoder's stream plus the time, (b, n, d).

    Without a time the stream is taken to hold it already, as one that was kept from an earlier pass does.
    """
    return state["cond"] if context.time is None else state["cond"] + context.time[:, None]


KINDS = (DDTEncoder.kind, DDTDecoder.kind)
"""The encoder's, the decoder's."""
