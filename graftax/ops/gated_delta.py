"""Gated delta attention: linear attention that forgets, and takes away what a key held before it writes there anew."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from graftax.errors import BadInput
from graftax.ops.base import CHANGED, KEPT, Cost, Operator, Overrides, Shapes, check_grid, linear_keys, silent
from graftax.ops.delta import delta_chunked, delta_flops
from graftax.ops.linear import EPS, FEATURES, LinearAttention
from graftax.ops.mamba2 import SCANS, Order, reorder
from graftax.spec import OpSpec, Option, Sizes


def gated_delta(
    q: jax.Array, k: jax.Array, v: jax.Array, gates: jax.Array, orders: Sequence[Order], grid: tuple[int, int],
    placed: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:  # fmt: skip
    """(sum of S_t q_t) / (sum of z_t . q_t) of `graftax.ops.delta` over passes that read the tokens in these `orders`.

    q, k, features that are nowhere negative, and v (b, n, h, k), gates (b, n, 2 h) -> (b, n, h, k) in v's type. Positive
    gates act: log a = -relu of the first half, e = tanh(relu) of the second. Of two passes, one the other's way back, a
    token's own value counts once, so that gates of zero make it `linear_attention`. `placed` as there.
    """
    h, kind = v.shape[2], v.dtype
    gates = jnp.maximum(gates.astype(jnp.float32), 0)  # unlike relu with a gradient at zero, where they start
    placed_q, placed_k = (a.astype(jnp.float32) for a in (placed or (q, k)))
    tokens = (placed_q, placed_k, v.astype(jnp.float32), q, k, -gates[..., :h], jnp.tanh(gates[..., h:]))
    read = delta_chunked(tuple(jnp.concatenate([_in_order(a, order, grid) for order in orders]) for a in tokens))
    back = (grid[1], grid[0])
    parts = (zip(jnp.split(a, len(orders)), orders, strict=True) for a in read)
    out, weights = (sum(_in_order(part, order, back) for part, order in passes) for passes in parts)
    twice = len(orders) // 2
    out -= twice * (placed_q * placed_k).sum(-1, keepdims=True) * tokens[2]
    weights -= twice * (q.astype(jnp.float32) * k.astype(jnp.float32)).sum(-1)
    return (out / (weights[..., None] + EPS)).astype(kind)


def _in_order(a: jax.Array, order: Order, grid: tuple[int, int]) -> jax.Array:
    """`reorder` of tokens (b, n, ...)."""
    return reorder(a.reshape(*a.shape[:2], -1), order, grid).reshape(a.shape)


def gates_cost(tokens: int, width: int, heads: int) -> Cost:
    """Of the layer that gates come from."""
    return Cost(2 * heads * (width + 1), 0, 2 * tokens * width * 2 * heads)


class GatedDelta(LinearAttention):
    """`gated_delta` of phi(q), phi(k) and v, with gates from a layer on the tokens, plus `linear`'s convolution of values.

    The gated delta rule (Yang et al., arXiv 2412.06464) in an image model: as in Sana's video blocks (NVlabs/Sana, GDN) with
    the normaliser of linear attention, and gates that leave it linear attention at first; here they do so exactly, because
    writing and erasing have strengths of their own, and the gates' layer starts at zero. Without the paper's short
    convolutions and the norm and gate of its output. Taken over from `linear` of the same feature map it computes the same.

    Attributes:
        scan: "bidirectional", "cross" (also column by column), or "raster", which is causal and so no linear attention over
            all tokens.
    """

    scan: str = "bidirectional"

    kind = "gated_delta"
    torch_keys = (
        *linear_keys("qkv", "delta_qkv"),
        *(key for key in LinearAttention.torch_keys if not key.leaf.startswith("qkv")),
        *linear_keys("gates", "gates"),
    )

    @property
    def needs_grid(self) -> bool:
        return self.conv or self.scan == "cross"

    def setup(self) -> None:
        super().setup()
        self.gates = silent(2 * self.sizes.heads, self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x, gates=self.gates(x))

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array, *, gates: jax.Array) -> jax.Array:
        phi = FEATURES[self.feature]
        out = gated_delta(phi(q), phi(k), v, gates, SCANS[self.scan], self.sizes.grid)
        return out + self.nearby(v) if self.conv else out

    def core(self) -> int:
        return len(SCANS[self.scan]) * delta_flops(self.tokens, self.sizes.heads, self.sizes.head_dim)

    def cost(self) -> Cost:
        plain, gates = super().cost(), gates_cost(self.tokens, self.width, self.sizes.heads)
        return Cost(plain.params + gates.params, plain.op_flops, plain.featurizer_flops + gates.featurizer_flops)

    def start(self, donor: Operator) -> str:
        alike = (
            isinstance(donor, LinearAttention)
            and donor.kind == "linear"
            and donor.feature == self.feature
            and self.conv >= donor.conv
            and self.scan != "raster"
        )
        return KEPT if self == donor or alike else CHANGED

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        super().check(op, sizes)
        scan = op.option("scan")
        if scan not in SCANS:
            raise BadInput(f"{cls.kind} scan: got {scan!r}, expected one of {tuple(SCANS)}")
        if scan == "cross":
            check_grid(f"{cls.kind} with scan 'cross'", sizes)

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        found = super().recognise(shapes, overrides)
        return found and {**found, "scan": overrides.get("scan", cls.options()["scan"])}
