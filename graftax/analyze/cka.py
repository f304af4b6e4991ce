"""Centred kernel alignment of residual states: how alike two layers see the tokens, whatever the axes they write them on.

Sources: linear CKA, Kornblith et al. 2019 (arXiv 1905.00414); its unbiased sums over small batches, Nguyen et al. 2020
(arXiv 2010.15327, Eq. 3), after Song et al. 2012.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from graftax.analyze.inputs import Input
from graftax.analyze.similarity import ALL, residual_states
from graftax.errors import BadInput
from graftax.models import Cond, Model
from graftax.models.forward import prepare_params
from graftax.ops.base import Params
from graftax.spec import ModelSpec

ROWS = 512
"""Tokens of a batch that are compared, evenly spaced where it has more: kernels are of their square."""


def state_cka(model: Model, inputs: Iterable[Input], *, rows: int = ROWS, dtype: DTypeLike | None = None) -> np.ndarray:
    """Linear CKA of the T + 1 residual states of a program of T steps, all streams together: (T + 1, T + 1) float64.

    A token of a sample is one observation of d features, and up to `rows` of a batch are taken; HSIC is summed over batches
    before the quotient. 1 on the diagonal; 0 is what unrelated states have on average. `inputs`: batches (x_t, t,
    conditions). Raises `BadInput` where there is none, and where a batch has fewer than four tokens.
    """
    prepared, sums = prepare_params(model.spec, model.params), np.zeros(())
    measure = jax.jit(partial(_hsic_of_states, model.spec, dtype, rows))
    for x, t, cond in inputs:
        sums = sums + np.asarray(measure(prepared, x, t, cond), np.float64)
    if not sums.ndim:
        raise BadInput("CKA: no inputs, expected at least one batch")
    own = np.sqrt(np.diag(sums))
    return sums / (own[:, None] * own)


def _hsic_of_states(
    spec: ModelSpec, dtype: DTypeLike | None, rows: int, prepared: Params, x: jax.Array, t: jax.Array, cond: Cond
) -> jax.Array:
    states = residual_states(spec, dtype, prepared, x, t, cond)[ALL]
    states = states.reshape(len(states), -1, states.shape[-1])  # (T + 1, b n, d)
    return hsic(states[:, :: max(1, -(-states.shape[1] // rows))])


def hsic(states: jax.Array) -> jax.Array:
    """Unbiased HSIC of all pairs of states under the linear kernel: (s, n, d) -> (s, s). Raises `BadInput` below n = 4."""
    n = states.shape[1]
    if n < 4:
        raise BadInput(f"CKA: {n} tokens in a batch, expected 4 or more")
    states = states - states.mean(1, keepdims=True)  # leaves HSIC as it is, and float32 its digits
    highest = jax.lax.Precision.HIGHEST
    kernels = jnp.einsum("snd,smd->snm", states, states, precision=highest) * (1 - jnp.eye(n))
    sums = kernels.sum(2)  # (s, n)
    whole = sums.sum(1)
    traces = jnp.einsum("inm,jnm->ij", kernels, kernels, precision=highest)
    crossed = jnp.einsum("in,jn->ij", sums, sums, precision=highest)
    return (traces + whole[:, None] * whole / ((n - 1) * (n - 2)) - 2 * crossed / (n - 2)) / (n * (n - 3))
