"""How the outputs of blocks that ran on one input become one state, among it the learned projection.

Source of the projection: the parallel blocks of the grafting paper (arXiv 2506.05340), whose parameter count fixes the
shape: one linear map of the concatenated outputs. How it starts was not published.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from graftax.blocks import State, streams
from graftax.ops.base import IN_HIDDEN, Params
from graftax.spec import ModelSpec, Step

MERGES = "merges"
"""Where a parameter tree keeps the projections."""

AXES = IN_HIDDEN
"""Logical axes of a projection's kernel."""


def merged(step: Step, state: State, outs: Sequence[State], projection: Params) -> State:
    """The state after `step`, whose definition is `Step`'s: every stream by itself.

    `outs`: what its blocks made of `state`; `projection`: see `project`, {} where the step has none.
    """
    if step.merge == "project":
        changes = {name: out - state[name] for name, out in project(projection, outs).items()}
    else:
        count = len(outs) if step.merge == "mean" else 1
        changes = {name: sum(out[name] - state[name] for out in outs) / count for name in state}
    return {name: state[name] + step.alpha * changes[name] for name in state}


def project(projection: Params, outs: Sequence[State]) -> State:
    """W [f_1, ..., f_m] + b of every stream: m states -> one. In float32: the residual stream passes through.

    `projection`: kernel (m d, d), bias (d,); where there are several streams one such tree for each, by its name.
    """

    def one(p: Params, arrays: Sequence[jax.Array]) -> jax.Array:
        joined = jnp.concatenate(arrays, axis=-1)  # (b, n, m d)
        return jnp.matmul(joined, p["kernel"], precision=jax.lax.Precision.HIGH) + p["bias"]

    return {name: one(stream_of(projection, name), [out[name] for out in outs]) for name in outs[0]}


def stream_of(projection: Params, stream: str) -> Params:
    """The kernel and bias of one stream."""
    return projection if "kernel" in projection else projection[stream]


def mean_kernel(key: jax.Array | None, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> jax.Array:  # pyright: ignore
    """The kernel (m d, d) whose projection is the mean of the m outputs; a Flax initialiser, `key` is not used."""
    count, width = shape[0] // shape[1], shape[1]
    return jnp.tile(jnp.eye(width, dtype=dtype) / count, (count, 1))


def mean_merge(spec: ModelSpec, count: int) -> Params:
    """The projection that starts as the mean of `count` block outputs: kernel (count d, d), bias (d,), by stream where there
    are several."""
    one = {"kernel": mean_kernel(None, (count * spec.width, spec.width)), "bias": jnp.zeros(spec.width)}
    names = streams(spec)
    return one if len(names) == 1 else dict.fromkeys(names, one)


class Merges(nn.Module):
    """All projections of a model as one module, for initialisation: {"00_01": as `mean_merge` makes it}.

    Attributes:
        spec: the model's.
    """

    spec: ModelSpec

    @nn.compact
    def __call__(self) -> None:
        for blocks in self.spec.merges:
            self.param(self.spec.merge_key(blocks), lambda _, count: mean_merge(self.spec, count), len(blocks))
