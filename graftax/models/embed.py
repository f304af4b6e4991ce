"""What surrounds the blocks of a DiT: patches in, conditioning, patches out. Facebook's DiT (arXiv 2212.09748) semantics.

`compat` "diffusers" (`ModelSpec.compat`) names the two places where Hugging Face diffusers' DiTTransformer2DModel (0.42)
computes otherwise: `timestep_features` and `MLP_NORM_EPS`.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike

FREQUENCIES = 256
"""Width of the sinusoidal timestep features."""

MLP_NORM_EPS = {"dit": 1e-6, "diffusers": 1e-5}
"""`compat` -> eps of the norm before the channel mixer; all other norms have 1e-6 in both."""


def call(module: nn.Module, params: Any, *inputs: jax.Array) -> jax.Array:
    """A Linen module that returns one array, applied to its plain parameters."""
    return module.apply({"params": params}, *inputs)  # pyright: ignore[reportReturnType]


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """LayerNorm without parameters over the last axis, in float32."""
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + eps)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """adaLN: x * (1 + scale) + shift."""
    return x * (1 + scale) + shift


def sinusoidal_positions(width: int, grid: int) -> np.ndarray:
    """The fixed 2-D sine-cosine table of DiT, (1, grid * grid, width) float32, tokens in raster order.

    The first half of the channels encodes the column, the second the row; each half is [sin | cos] of its frequencies.
    """
    omega = 1 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    rows, columns = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    halves = [np.outer(axis.reshape(-1), omega) for axis in (columns, rows)]  # (n, d / 4) each
    table = np.concatenate([f(half) for half in halves for f in (np.sin, np.cos)], axis=1)
    return table[None].astype(np.float32)


def timestep_features(t: jax.Array, compat: str = "dit") -> jax.Array:
    """t (b,) in [0, 1000) -> (b, 256): cosines then sines, in float32; frequencies 10000^(-i / 128), in diffusers / 127."""
    half = FREQUENCIES // 2
    last = half - 1 if compat == "diffusers" else half
    # By numpy, rounded once: XLA's exp is off by an ulp here and there, which at t = 999 turns angles by up to 6e-5.
    exponents = -math.log(10000) * np.arange(half, dtype=np.float32) / np.float32(last)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class PatchEmbed(nn.Module):
    """(b, h, w, c) -> (b, n, d): a linear map of p x p patches, in raster order."""

    width: int
    patch: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        p, d = self.patch, self.width
        # in_axis spans the whole patch, so that the fans are those of the flattened matrix, as in DiT.
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=(0, 1, 2), out_axis=3)
        kernel = self.param("kernel", init, (p, p, c, d), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (d,), jnp.float32)
        x = x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, p * p * c)
        x, kernel, bias = promote_dtype(x, kernel.reshape(p * p * c, d), bias, dtype=self.dtype)
        return x @ kernel + bias


class TimestepEmbed(nn.Module):
    """t (b,) -> (b, d): sinusoids, then a two-layer SiLU MLP; all in float32."""

    width: int
    compat: str = "dit"

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        init = nn.initializers.normal(0.02)
        x = nn.silu(nn.Dense(self.width, kernel_init=init, name="fc1")(timestep_features(t, self.compat)))
        return nn.Dense(self.width, kernel_init=init, name="fc2")(x)


class LabelEmbed(nn.Module):
    """y (b,) int -> (b, d). Row `num_classes` is the null class of classifier-free guidance."""

    num_classes: int
    width: int

    @nn.compact
    def __call__(self, y: jax.Array) -> jax.Array:
        table = self.param("embedding", nn.initializers.normal(0.02), (self.num_classes + 1, self.width), jnp.float32)
        return jnp.take(table, y, axis=0)


class FinalLayer(nn.Module):
    """Tokens (b, n, d) and conditioning (b, d) -> image (b, h, w, channels); starts at zero output."""

    patch: int
    channels: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:
        b, n, d = x.shape
        p, grid = self.patch, math.isqrt(n)
        zeros = nn.initializers.zeros
        shift_scale = nn.Dense(2 * d, dtype=self.dtype, kernel_init=zeros, name="adaln")(nn.silu(c))
        shift, scale = jnp.split(shift_scale[:, None].astype(jnp.float32), 2, axis=-1)  # (b, 1, d)
        x = modulate(layer_norm(x), shift, scale)
        x = nn.Dense(p * p * self.channels, dtype=self.dtype, kernel_init=zeros, name="linear")(x)  # (b, n, p p c)
        x = x.astype(jnp.float32).reshape(b, grid, grid, p, p, self.channels)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, grid * p, grid * p, self.channels)
