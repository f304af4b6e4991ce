"""Joint Hyena-X: a gated short convolution over text and image as one sequence."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from graftax.ops.base import Cost
from graftax.ops.hyena import ShortFilter, check_kernel, filter_cost
from graftax.ops.joint import Joint
from graftax.ops.placement import place
from graftax.spec import OpSpec, Sizes


class JointHyenaX(Joint):
    """y = W_out(q * (k * v)) + b with (q, k, v) = split(conv_K(W_in u + b)) of text and image side by side, W_in and W_out
    each stream's own: `graftax.ops.hyena.HyenaX` for blocks of two streams.

    A token sees itself and the K - 1 tokens before it in [txt | img], the image in raster order: the first image tokens see
    the last of the text, the text sees none of the image. No norms of queries and keys, no rotary positions.

    Attributes:
        kernel: taps K.
    """

    kernel: int = 4

    kind = "joint_hyena_x"

    def setup(self) -> None:
        super().setup()
        self.short_filter = ShortFilter(3 * self.inner, self.kernel)

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        heads = q.shape[2:]
        u = jnp.concatenate([part.reshape(*part.shape[:2], -1) for part in (q, k, v)], axis=-1)  # (b, m + n, 3 h k)
        parts = jnp.split(self.short_filter(place(u, "batch", None, "hidden")), 3, axis=-1)
        q, k, v = (place(self.answered(part), "batch", None, "hidden") for part in parts)
        return (q * (k * v)).reshape(*q.shape[:2], *heads)

    def core(self) -> Cost:
        params, flops = filter_cost(3 * self.inner, self.kernel, self.tokens)
        return Cost(params, 2 * self.asking * self.inner, flops)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        super().check(op, sizes)
        check_kernel(op)
