"""One adaLN-zero transformer block: once as a function over given operators, once as a Linen module."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax import ops
from graftax.models.embed import MLP_NORM_EPS, layer_norm, modulate
from graftax.ops.placement import place
from graftax.spec import BlockSpec, ModelSpec

TAPS = ("block/in", "mixer/in", "mixer/out", "mlp/in", "mlp/out", "block/out")
"""Names that `capture` accepts; each tap is (b, n, d) per block."""

STREAM = ("batch", "tokens", "width")
"""Axes of the residual stream."""

Taps = dict[str, jax.Array]


def block_body(
    x: jax.Array, modulation: jax.Array, mixer: Callable[[jax.Array], jax.Array], mlp: Callable[[jax.Array], jax.Array],
    compat: str = "dit",
) -> tuple[jax.Array, Taps]:  # fmt: skip
    """x += gate * mixer(adaLN(x)); x += gate * mlp(adaLN(x)) (DiT, Section 3.2; residuals in float32).

    x (b, n, d), modulation (b, 6 d) in the order shift, scale, gate (mixer), shift, scale, gate (mlp)
    -> x (b, n, d) and every tap. Operators' inputs carry the shift and scale, their outputs come before the gate.
    `compat` as in `ModelSpec`.
    """
    parts = jnp.split(modulation[:, None].astype(jnp.float32), 6, axis=-1)  # (b, 1, d) each
    eps = {"mixer": 1e-6, "mlp": MLP_NORM_EPS[compat]}
    taps: Taps = {"block/in": x}
    for slot, operator, (shift, scale, gate) in (("mixer", mixer, parts[:3]), ("mlp", mlp, parts[3:])):
        taps[f"{slot}/in"] = modulate(layer_norm(x, eps[slot]), shift, scale)
        taps[f"{slot}/out"] = operator(taps[f"{slot}/in"]).astype(jnp.float32)
        x = place(x + gate * taps[f"{slot}/out"], *STREAM)
    taps["block/out"] = x
    return x, taps


class Block(nn.Module):
    """The block as a module, for initialisation and for those who build on Flax directly."""

    block: BlockSpec
    model: ModelSpec
    dtype: DTypeLike | None = None
    init_style: str = "dit"

    def setup(self) -> None:
        self.adaln = nn.Dense(6 * self.model.hidden_size, dtype=self.dtype, kernel_init=nn.initializers.zeros)
        self.mixer = ops.build(self.block.mixer, self.model, self.dtype, self.init_style)
        self.mlp = ops.build(self.block.mlp, self.model, self.dtype, self.init_style)

    def __call__(self, x: jax.Array, c: jax.Array) -> tuple[jax.Array, Taps]:
        return block_body(x, self.adaln(nn.silu(c)), self.mixer, self.mlp, self.model.compat)
