"""Joint 2-D Hyena: gated convolutions over the image grid and along the text, which meet in their means."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from graftax.ops.base import Cost
from graftax.ops.hyena import ShortFilter
from graftax.ops.hyena_2d import GridFilter, by_stream, check_grid_filter, met, met_flops, streams_filter_cost
from graftax.ops.joint import Joint
from graftax.ops.placement import place
from graftax.spec import OpSpec, Sizes


class JointHyena2D(Joint):
    """y = W_out(q * H(k * v)) + b with (q, k, v) = split(conv(W_in u + b)), W_in and W_out each stream's own:
    `graftax.ops.hyena_2d.Hyena2D` for blocks of two streams.

    conv is K x K on the image grid, centred, and K taps along the text, causal; H adds to every token the mean of the other
    stream, so that the text reaches the image as one vector. No norms of queries and keys, no rotary positions.

    Attributes:
        kernel: side K of the image's filter, odd, and taps of the text's.
    """

    kernel: int = 3

    kind = "joint_hyena_2d"

    @property
    def needs_grid(self) -> bool:
        return True

    def setup(self) -> None:
        super().setup()
        self.grid_filter = GridFilter(3 * self.inner, self.kernel, self.sizes.grid)
        self.short_filter = ShortFilter(3 * self.inner, self.kernel)

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        text, heads = q.shape[1] - self.sizes.image, q.shape[2:]
        u = jnp.concatenate([part.reshape(*part.shape[:2], -1) for part in (q, k, v)], axis=-1)  # (b, m + n, 3 h k)
        u = by_stream(place(u, "batch", None, "hidden"), text, self.short_filter, self.grid_filter)
        q, k, v = (place(part, "batch", None, "hidden") for part in jnp.split(u, 3, axis=-1))
        mixed = self.answered(q) * self.answered(met(k * v, text))
        return mixed.reshape(*mixed.shape[:2], *heads)

    def core(self) -> Cost:
        params, flops = streams_filter_cost(self.sizes, 3 * self.inner, self.kernel)
        gates = (self.asking + self.tokens) * self.inner
        return Cost(params, gates + met_flops(self.sizes, self.inner, 1 + self.text_out), flops)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        super().check(op, sizes)
        check_grid_filter(op, sizes)
