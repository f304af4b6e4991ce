"""Mamba-2 as token mixer: a gated state-space scan over tokens (arXiv 2405.21060; in DiT: arXiv 2506.05340, Section 3)."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from graftax.errors import BadInput
from graftax.ops.base import Cost, Operator, Overrides, Shapes, TorchKey, check_grid, conv_keys
from graftax.ops.hyena import PROJECTION_AXES, ShortFilter
from graftax.ops.ssd import ssd_chunked
from graftax.spec import OpSpec, Option, Sizes

Order = tuple[bool, bool]
"""An order of the tokens of a square grid: column by column instead of row by row; last token first."""

SCANS: dict[str, tuple[Order, ...]] = {
    "raster": ((False, False),),
    "bidirectional": ((False, False), (False, True)),
    "cross": ((False, False), (False, True), (True, False), (True, True)),
}
"""Orders that each choice of `scan` reads the tokens in."""


def reorder(x: jax.Array, order: Order, grid: tuple[int, int]) -> jax.Array:
    """Tokens x (b, n, c) of a `grid` of rows x columns from raster order into `order`; back with the grid's sides
    swapped."""
    by_columns, reverse = order
    if by_columns:
        b, n, c = x.shape
        x = x.reshape(b, *grid, c).swapaxes(1, 2).reshape(b, n, c)
    return x[:, ::-1] if reverse else x


def decay_rates(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
    """Initial A_log: A uniform in [1, 16]."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 1, 16))


def step_biases(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
    """Initial dt_bias: softplus(dt_bias) is log-uniform in [0.001, 0.1]."""
    dt = jnp.exp(jax.random.uniform(key, shape, dtype, math.log(1e-3), math.log(0.1)))
    return dt + jnp.log(-jnp.expm1(-dt))  # the inverse of softplus


class Mamba2(Operator):
    """y = W_out(RMSNorm(scan(x, B, C, dt) * silu(z))) with (z, xBC, dt) = split(W_in u), projections without bias.

    (x, B, C) = silu(conv(xBC)), a causal convolution of `d_conv` taps; dt = softplus(dt + dt_bias), A = -exp(A_log). x is
    `expand` times as wide as the model, in heads of `headdim` channels; each head scans its tokens with a state of
    headdim x `d_state` numbers (`graftax.ops.ssd`), B and C shared by all heads, and adds D x. The norm spans all channels.

    `scan` "raster" is the paper's: one pass over tokens in raster order, so that a token sees itself and those before it.
    "bidirectional" adds the same pass from the last token to the first; "cross" also both passes column by column. Every
    pass reorders xBC and dt, runs convolution, scan and D x with the same weights, and puts the result back in place; the
    results are summed before the gate. Reference: mamba_ssm's Mamba2 with one group, gate before norm.
    """

    d_state: int = 64
    headdim: int = 16
    expand: int = 2
    d_conv: int = 4
    scan: str = "raster"

    kind = "mamba2"
    axes = PROJECTION_AXES
    torch_keys = (
        TorchKey("in_proj/kernel", "in_proj.weight", "linear"),
        *conv_keys("conv1d", "conv1d"),
        TorchKey("dt_bias", "dt_bias", "same"),
        TorchKey("A_log", "A_log", "same"),
        TorchKey("D", "D", "same"),
        TorchKey("norm/scale", "norm.weight", "same"),
        TorchKey("out_proj/kernel", "out_proj.weight", "linear"),
    )

    @property
    def inner(self) -> int:
        """Channels of x and of the gate z."""
        return self.expand * self.width

    @property
    def heads(self) -> int:
        """Heads of the scan; they are not the attention heads of the model."""
        return self.inner // self.headdim

    @property
    def needs_grid(self) -> bool:
        return self.scan == "cross"

    def setup(self) -> None:
        mixed = self.inner + 2 * self.d_state  # x, B, C
        self.in_proj = self.linear(self.inner + mixed + self.heads, self.width, bias=False)
        self.conv1d = ShortFilter(mixed, self.d_conv)
        self.dt_bias = self.param("dt_bias", step_biases, (self.heads,))
        self.A_log = self.param("A_log", decay_rates, (self.heads,))
        self.D = self.param("D", nn.initializers.ones, (self.heads,))
        self.norm = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype)
        self.out_proj = self.linear(self.width, self.inner, bias=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        cuts = (self.inner, 2 * self.inner + 2 * self.d_state)
        z, mixed, dt = jnp.split(self.in_proj(x), cuts, axis=-1)  # (b, n, inner), (b, n, inner + 2 s), (b, n, h)
        dt = nn.softplus(dt.astype(jnp.float32) + self.dt_bias)
        orders = SCANS[self.scan]
        grid = self.sizes.grid
        passes = self.scan_tokens(*(jnp.concatenate([reorder(a, order, grid) for order in orders]) for a in (mixed, dt)))
        parts = zip(jnp.split(passes, len(orders)), orders, strict=True)
        y = sum(reorder(part, order, (grid[1], grid[0])) for part, order in parts)
        return self.out_proj(self.norm(y * nn.silu(z)))

    def scan_tokens(self, mixed: jax.Array, dt: jax.Array) -> jax.Array:
        """One pass over tokens as they come: mixed (b, n, inner + 2 s), dt (b, n, h) -> (b, n, inner)."""
        b, n, _ = mixed.shape
        x, B, C = jnp.split(nn.silu(self.conv1d(mixed)), (self.inner, self.inner + self.d_state), axis=-1)
        x = x.reshape(b, n, self.heads, self.headdim)
        y = ssd_chunked(x, dt, -jnp.exp(self.A_log), B, C) + self.D.astype(x.dtype)[:, None] * x
        return y.reshape(b, n, self.inner)

    def cost(self) -> Cost:
        d, n, inner, h, passes = self.width, self.tokens, self.inner, self.heads, len(SCANS[self.scan])
        mixed = inner + 2 * self.d_state
        projections = d * (inner + mixed + h) + inner * d
        params = projections + mixed * (self.d_conv + 1) + 3 * h + inner
        featurizer = 2 * n * projections + passes * 2 * self.d_conv * n * mixed
        return Cost(params, passes * 2 * inner * self.d_state * n, featurizer)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        for name in ("d_state", "headdim", "expand", "d_conv"):
            if op.option(name) < 1:
                raise BadInput(f"mamba2 {name}: got {op.option(name)}, expected 1 or more")
        inner = op.option("expand") * sizes.width
        if inner % op.option("headdim"):
            raise BadInput(f"mamba2 headdim: got {op.option('headdim')}, expected a divisor of expand * width = {inner}")
        scan = op.option("scan")
        if scan not in SCANS:
            raise BadInput(f"mamba2 scan: got {scan!r}, expected one of {tuple(SCANS)}")
        if scan == "cross":
            check_grid("mamba2 with scan 'cross'", sizes)

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        if super().recognise(shapes, overrides) is None:
            return None
        rows, width = shapes["in_proj.weight"]
        channels, _, taps = shapes["conv1d.weight"]
        # Sizes that several tensors tell go by majority, so that one wrong tensor is the one that gets named later.
        heads = _most_common(*(math.prod(shapes[name]) for name in ("dt_bias", "A_log", "D")))
        inner = _most_common(math.prod(shapes["norm.weight"]), shapes["out_proj.weight"][1], rows - channels - heads)
        if not 1 <= heads <= inner:
            return None
        sizes = {"d_state": (channels - inner) // 2, "headdim": inner // heads, "expand": inner // width, "d_conv": taps}
        return {**sizes, "scan": overrides.get("scan", cls.options()["scan"])}


def _most_common(*sizes: int) -> int:
    return Counter(sizes).most_common(1)[0][0]
