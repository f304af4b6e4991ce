"""One pass of a network as functions over (spec, params): what its backbone makes of the inputs, the blocks, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import jax
from jax.typing import DTypeLike

from graftax.blocks import Context, State, Taps
from graftax.models.backbone import Cond, find
from graftax.models.lora import materialise
from graftax.models.merge import MERGES
from graftax.models.policy import PLAIN, Draws, Policy, drawn
from graftax.models.prediction import entered, left
from graftax.models.shared import with_shared
from graftax.models.sizes import at_size
from graftax.models.stack import prepare, run_stack
from graftax.ops.base import Params
from graftax.spec import ModelSpec


def forward(
    spec: ModelSpec, params: Params, x: jax.Array, t: jax.Array, cond: Cond, *, plan: str = "auto",
    capture: Sequence[str] = (), dtype: DTypeLike | None = None, remat: str = "none", policy: Policy = PLAIN,
    key: jax.Array | Draws | None = None, states: Sequence[int] = (),
) -> tuple[jax.Array, Taps]:  # fmt: skip
    """One pass of the network.

    x (b, h, w, c) float, t (b,) as the network was trained with (`spec.prediction.time`), `cond` what its backbone takes,
    for a DiT {"y": (b,) int} with `classes` the null class -> output (b, h, w, out_channels) float32, the prediction first,
    then the variance channels; and taps[name] (l, b, n, d) for the names in `capture`. `dtype` is the matmul type (None:
    that of the parameters, float32 as a rule). Values are not checked here (`Model` does).

    `policy` leaves out tokens, branches and blocks, drawn from `key`, a random key or what was drawn already
    (`Policy.draw`). `states`: positions of the program, a plain model's blocks, behind which the tokens are noted as
    taps["state/7"] (b, n, d), on a route those that are there. Raises `BadInput` where the policy does not fit the model.
    """
    prepared = prepare_params(spec, params, plan, (*policy.cuts, *(i + 1 for i in states)))
    return forward_prepared(
        spec, prepared, x, t, cond, capture=capture, dtype=dtype, remat=remat, policy=policy, key=key, states=states
    )


def prepare_params(spec: ModelSpec, params: Params, plan: str = "auto", cuts: Iterable[int] = ()) -> Params:
    """`params` with adapters folded in and blocks arranged for `plan`; do this once where the weights serve many passes.

    `cuts`: those of the policies that passes will have (`Policy.cuts`); passes without one run on the same weights.
    """
    params = materialise(spec, params)
    return {**params, "blocks": prepare(spec, params["blocks"], plan, params.get(MERGES), cuts)}


def forward_prepared(
    spec: ModelSpec, prepared: Params, x: jax.Array, t: jax.Array, cond: Cond, *, capture: Sequence[str] = (),
    dtype: DTypeLike | None = None, remat: str = "none", policy: Policy = PLAIN, key: jax.Array | Draws | None = None,
    states: Sequence[int] = (),
) -> tuple[jax.Array, Taps]:  # fmt: skip
    """`forward` on the result of `prepare_params`."""
    spec = at_size(spec, x)
    draws = drawn(spec, policy, key, len(x))
    state, context = embed(spec, prepared, x, t, cond, dtype)
    state, taps = run_stack(
        spec, prepared["blocks"], state, context, capture=capture, dtype=dtype, remat=remat, policy=policy, draws=draws,
        states=states,
    )  # fmt: skip
    if policy.mask:
        context = replace(context, kept=policy.kept(spec, draws, 0))
    return head(spec, prepared, state, context, x, t, dtype), taps


def embed(
    spec: ModelSpec, params: Params, x: jax.Array, t: jax.Array, cond: Cond, dtype: DTypeLike | None = None
) -> tuple[State, Context]:
    """What the blocks run on, of plain or prepared parameters; inputs as in `forward`."""
    state, context = find(spec).embed(spec, params, *entered(spec.prediction, x, t), cond, dtype)
    return state, with_shared(spec, params, context, dtype)


def head(
    spec: ModelSpec, params: Params, state: State, context: Context, x: jax.Array, t: jax.Array,
    dtype: DTypeLike | None = None,
) -> jax.Array:  # fmt: skip
    """The output of what the blocks left; x and t are those that `embed` had."""
    return left(spec.prediction, find(spec).head(spec, params, state, context, dtype), x, t)
