"""Self-attention as PixArt-Sigma may have it (arXiv 2403.04692, Section 3.3): norms of queries and keys, fewer keys than
queries."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.typing import ArrayLike, DTypeLike

from graftax.errors import BadInput
from graftax.ops.attention import MHA
from graftax.ops.base import Cost, Operator, Overrides, Params, Shapes, TorchKey, carried, check_grid
from graftax.ops.norms import layer_norm
from graftax.ops.placement import place
from graftax.spec import OpSpec, Option, Sizes

EPS = 1e-5
"""Of these norms, PyTorch's default."""


class ScaledLayerNorm(nn.Module):
    """A LayerNorm with a scale and a bias over the last axis: (..., d) -> the same, float32.

    Attributes:
        eps: added to the variance.
    """

    eps: float = EPS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        return layer_norm(x, self.eps) * scale + self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)


class Shrink(nn.Module):
    """Depthwise convolution of tokens in raster order, kernel and stride `factor`: (b, n, d) -> (b, n / factor^2, d).

    It starts as the mean of every square. Rows and columns that fill no square are left out, as PyTorch's convolution does.

    Attributes:
        factor: side f of the square of tokens that becomes one.
        grid: rows and columns of tokens.
        dtype: in which products are taken.
    """

    factor: int
    grid: tuple[int, int]
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        (b, _, d), f = x.shape, self.factor
        kernel = self.param("kernel", nn.initializers.constant(1 / f**2), (f, f, 1, d), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (d,), jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        rows, columns = (side // f for side in self.grid)
        squares = x.reshape(b, *self.grid, d)[:, : rows * f, : columns * f].reshape(b, rows, f, columns, f, d)
        return jnp.einsum("brfcgd,fgd->brcd", squares, kernel[:, :, 0]).reshape(b, rows * columns, d) + bias


class MHAKV(MHA):
    """`MHA` whose keys and values are fewer: `Shrink`, then a norm, the same two for both (PixArt-Sigma's
    AttentionKVCompress, sampling "conv").

    Attributes:
        factor: side of the square of keys that becomes one; 1 leaves them as they are.
        qk_norm: whether queries and keys, all heads as one vector, go through a LayerNorm of their own before that.
    """

    factor: int = 2
    qk_norm: bool = False

    kind = "mha_kv"
    torch_keys = (
        *MHA.torch_keys,
        *(
            TorchKey(f"{norm}/{ours}", f"{norm}.{theirs}", "same")
            for norm in ("q_norm", "k_norm", "norm") for ours, theirs in (("scale", "weight"), ("bias", "bias"))
        ),
        TorchKey("sr/kernel", "sr.weight", "patch"),  # (d, 1, f, f) -> (f, f, 1, d)
        TorchKey("sr/bias", "sr.bias", "same"),
    )  # fmt: skip

    @property
    def needs_grid(self) -> bool:
        return self.factor > 1

    def setup(self) -> None:
        super().setup()
        if self.qk_norm:
            self.q_norm, self.k_norm = ScaledLayerNorm(), ScaledLayerNorm()
        if self.factor > 1:
            self.sr, self.norm = Shrink(self.factor, self.sizes.grid, self.dtype), ScaledLayerNorm()

    def heads_of(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries (b, n, h, k), keys and values (b, n / factor^2, h, k) of tokens x (b, n, d)."""
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)  # (b, n, h k)
        kind = v.dtype
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.factor > 1:
            k, v = self.norm(self.sr(k)), self.norm(self.sr(v))
        heads = (self.sizes.heads, self.sizes.head_dim)
        q, k, v = (place(a.astype(kind).reshape(*a.shape[:2], *heads), "batch", None, "heads", None) for a in (q, k, v))
        return q, k, v

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """Another attention's projections; of norms and convolution those of a donor that has them."""
        return carried(fresh, {**weights, **donor.projections(weights)}) if isinstance(donor, MHA) else None

    @property
    def keys(self) -> int:
        """Keys that are left."""
        rows, columns = (side // self.factor for side in self.sizes.grid)
        return rows * columns if self.factor > 1 else self.tokens

    def attended(self) -> int:
        return self.keys

    def cost(self) -> Cost:
        plain, inner, f = super().cost(), self.inner, self.factor
        norms = 4 * inner * self.qk_norm
        shrink = (f**2 * inner + inner + 2 * inner) * (f > 1)
        convolved = 2 * 2 * f**2 * inner * self.keys * (f > 1)
        return Cost(plain.params + norms + shrink, plain.op_flops, plain.featurizer_flops + convolved)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        factor, side = op.option("factor"), min(sizes.grid)
        if not 1 <= factor <= side:
            raise BadInput(f"mha_kv factor: got {factor}, expected 1 to the {side} tokens of the image's shorter side")
        if factor > 1:
            check_grid(cls.kind, sizes)

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        normed, shrunk = "q_norm.weight" in shapes, "sr.weight" in shapes
        parts = ("qkv.", "proj.", *("q_norm.", "k_norm.") * normed, *("sr.", "norm.") * shrunk)
        if not (normed or shrunk) or set(shapes) != {key.name for key in cls.torch_keys if key.name.startswith(parts)}:
            return None
        return {"factor": shapes["sr.weight"][-1] if shrunk else 1, "qk_norm": normed}
