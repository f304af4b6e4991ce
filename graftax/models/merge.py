"""The learned projection that merges the outputs of blocks which ran on the same input.

Source: the parallel blocks of the grafting paper (arXiv 2506.05340), whose parameter count fixes the shape: one linear map
of the concatenated outputs. How it starts was not published.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from graftax.models.collect import Params
from graftax.spec import ModelSpec, merge_key


def project(p: Params, outs: Sequence[jax.Array]) -> jax.Array:
    """W [f_1, ..., f_m] + b: m block outputs (b, n, d) -> (b, n, d). In float32: the residual stream passes through."""
    joined = jnp.concatenate(outs, axis=-1)  # (b, n, m d)
    return jnp.matmul(joined, p["kernel"], precision=jax.lax.Precision.HIGH) + p["bias"]


def mean_kernel(key: jax.Array | None, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> jax.Array:  # pyright: ignore
    """The kernel (m d, d) whose projection is the mean of the m outputs; a Flax initialiser, `key` is not used."""
    count, width = shape[0] // shape[1], shape[1]
    return jnp.tile(jnp.eye(width, dtype=dtype) / count, (count, 1))


def mean_merge(count: int, width: int) -> Params:
    """The projection that starts as the mean of `count` block outputs: kernel (count d, d), bias (d,)."""
    return {"kernel": mean_kernel(None, (count * width, width)), "bias": jnp.zeros(width)}


class Merges(nn.Module):
    """All projections of a model as one module, for initialisation: {"00_01": kernel (m d, d), bias (d,)}."""

    spec: ModelSpec

    @nn.compact
    def __call__(self, x: jax.Array) -> None:
        for blocks in self.spec.merges:
            dense = nn.Dense(x.shape[-1], kernel_init=mean_kernel, name=merge_key(blocks))
            dense(jnp.concatenate([x] * len(blocks), axis=-1))
