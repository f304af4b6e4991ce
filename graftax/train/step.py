"""One optimiser update as one compiled function, and the `Job` that trains with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from graftax.errors import BadInput
from graftax.train.loop import Batch, Job, Metrics
from graftax.train.optimiser import OptimiserConfig
from graftax.train.sharding import batch_sharding, constrain, shard_tree
from graftax.train.state import Params, TrainState, create_state, merge, update_ema

LossFn = Callable[[Params, Batch, jax.Array], tuple[jax.Array, Metrics]]
StepFn = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]


def make_step(loss_fn: LossFn, optimiser: OptimiserConfig, *, ema_decay: float = 0.9999, mesh: Mesh | None = None) -> StepFn:
    """The compiled `step(state, batch, key) -> (state, metrics)`.

    `loss_fn(params, batch, key) -> (() loss, {name: () number})` sees the whole tree; gradients are taken for the
    trainable part only. metrics adds `loss`, `grad_norm` (global, before clipping), `lr` and `finite` (1 or 0), all
    () float32. Where loss or gradient norm is not finite the state comes back as it was, `step` included.

    The state's arrays are donated, so the old state must not be used again; frozen leaves are not: they stay the same
    objects. With a `mesh` the new state is held to the layout of `shard_tree`.

    Raises BadInput if `ema_decay` is not in [0, 1).
    """
    if not 0 <= ema_decay < 1:
        raise BadInput(f"ema_decay: got {ema_decay!r}, expected a number in [0, 1)")
    tx = optimiser.build()

    def loss_of(trainable: Params, frozen: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        return loss_fn(merge(trainable, frozen), batch, key)

    @partial(jax.jit, donate_argnums=0)
    def update(state: TrainState, frozen: Params, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        if mesh is not None:
            batch = jax.lax.with_sharding_constraint(batch, batch_sharding(mesh))
        (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(state.trainable, frozen, batch, key)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        new = constrain(_advance(state, grads, tx, ema_decay), mesh)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        own = {"loss": loss, "grad_norm": norm, "lr": optimiser.rate(state.step), "finite": finite}
        return kept, {name: jnp.asarray(value, jnp.float32) for name, value in {**metrics, **own}.items()}

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        # Frozen leaves travel beside the state, undonated: a teacher or the caller may hold the same arrays.
        moving, metrics = update(dataclasses.replace(state, frozen={}), state.frozen, batch, key)
        return dataclasses.replace(moving, frozen=state.frozen), metrics

    return step


def _advance(state: TrainState, grads: Params, tx: optax.GradientTransformation, ema_decay: float) -> TrainState:
    updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    ema = update_ema(state.ema, trainable, ema_decay)  # type: ignore[arg-type]
    return TrainState(state.step + 1, trainable, state.frozen, ema, opt_state)  # type: ignore[arg-type]


def train_job(
    init_params: Callable[[], Params], loss_fn: LossFn, optimiser: OptimiserConfig, *, ema_decay: float = 0.9999,
    frozen: Sequence[str] = (), mesh: Mesh | None = None, metadata: Mapping[str, Any] | None = None,
    evaluate: Callable[[Params], Mapping[str, Any]] | None = None, label: str = "train",
) -> Job[TrainState]:  # fmt: skip
    """The `Job` that trains `init_params()` on `loss_fn`, ready for `fit`: used by every network of this package.

    `frozen` are path patterns (see `state.split`). `evaluate` gets the averaged parameters and returns numbers to
    log. `metadata` (JSON types) is stored with each checkpoint next to the optimiser's fields, `ema_decay` and
    `frozen`; a run that resumes must agree in all of it.
    """

    def init() -> TrainState:
        state = create_state(init_params(), optimiser.build(), frozen)
        return state if mesh is None else shard_tree(state, mesh)

    facts = {"optimiser": dataclasses.asdict(optimiser), "ema_decay": ema_decay, "frozen": list(frozen)}
    return Job(
        init=init, step=make_step(loss_fn, optimiser, ema_decay=ema_decay, mesh=mesh), mesh=mesh, label=label,
        metadata={**(metadata or {}), **facts},
        evaluate=None if evaluate is None else lambda state: evaluate(state.ema_params),
    )  # fmt: skip
