"""One pass of a network as functions over (spec, params): what its backbone makes of the inputs, the blocks, and back."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.typing import DTypeLike

from graftax.blocks import Context, State, Taps
from graftax.models.backbone import Cond, find
from graftax.models.lora import materialise
from graftax.models.merge import MERGES
from graftax.models.shared import with_shared
from graftax.models.sizes import at_size
from graftax.models.stack import prepare, run_stack
from graftax.ops.base import Params
from graftax.spec import ModelSpec


def forward(
    spec: ModelSpec, params: Params, x: jax.Array, t: jax.Array, cond: Cond, *, plan: str = "auto",
    capture: Sequence[str] = (), dtype: DTypeLike | None = None, remat: str = "none",
) -> tuple[jax.Array, Taps]:  # fmt: skip
    """One pass of the network.

    x (b, h, w, c) float, t (b,) as the network was trained with (`spec.prediction.time`), `cond` what its backbone takes,
    for a DiT {"y": (b,) int} with `classes` the null class -> output (b, h, w, out_channels) float32, the prediction first,
    then the variance channels; and taps[name] (l, b, n, d) for the names in `capture`. `dtype` is the matmul type (None:
    that of the parameters, float32 as a rule). Values are not checked here (`Model` does).
    """
    prepared = prepare_params(spec, params, plan)
    return forward_prepared(spec, prepared, x, t, cond, capture=capture, dtype=dtype, remat=remat)


def prepare_params(spec: ModelSpec, params: Params, plan: str = "auto") -> Params:
    """`params` with adapters folded in and blocks arranged for `plan`; do this once where the weights serve many passes."""
    params = materialise(spec, params)
    return {**params, "blocks": prepare(spec, params["blocks"], plan, params.get(MERGES))}


def forward_prepared(
    spec: ModelSpec, prepared: Params, x: jax.Array, t: jax.Array, cond: Cond, *, capture: Sequence[str] = (),
    dtype: DTypeLike | None = None, remat: str = "none",
) -> tuple[jax.Array, Taps]:  # fmt: skip
    """`forward` on the result of `prepare_params`."""
    spec = at_size(spec, x)
    state, context = embed(spec, prepared, x, t, cond, dtype)
    state, taps = run_stack(spec, prepared["blocks"], state, context, capture=capture, dtype=dtype, remat=remat)
    return find(spec).head(spec, prepared, state, context, dtype), taps


def embed(
    spec: ModelSpec, params: Params, x: jax.Array, t: jax.Array, cond: Cond, dtype: DTypeLike | None = None
) -> tuple[State, Context]:
    """What the blocks run on, of plain or prepared parameters; inputs as in `forward`."""
    state, context = find(spec).embed(spec, params, x, t, cond, dtype)
    return state, with_shared(spec, params, context, dtype)
