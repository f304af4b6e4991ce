"""One optimiser update as one compiled function, and the `Job` that trains with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from graftax.errors import BadInput
from graftax.ops.base import Params
from graftax.train.loop import Batch, Job, Metrics
from graftax.train.optimiser import OptimiserConfig
from graftax.train.sharding import RULES, AxisRules, activations, constrain, place_batch, shard_tree, tree_shardings
from graftax.train.state import TrainState, create_state, merge, split, update_ema, warmed_decay

LossFn = Callable[[Params, Batch, jax.Array], tuple[jax.Array, Metrics]]
Found = tuple[tuple[jax.Array, Metrics], Params]
"""((() loss, metrics), gradient)."""


@runtime_checkable
class RandomLoss(Protocol):
    """A loss whose random numbers can be drawn for a whole batch before it is cut: `given(params, draw(batch, key))` is
    the loss itself."""

    def draw(self, batch: Batch, key: jax.Array) -> Batch: ...
    def given(self, params: Params, batch: Batch) -> tuple[jax.Array, Metrics]: ...


RUN = "run"
"""Where the tree of a loss whose `sees_run` is true has {"ema": the averaged tree, "step": () updates done}: no gradient is
taken for them."""


def make_step(
    loss_fn: LossFn, optimiser: OptimiserConfig, *, ema_decay: float = 0.9999, ema_warmup: bool = False,
    mesh: Mesh | None = None, rules: AxisRules = RULES, accumulate: int = 1, compiler: Mapping[str, str] | None = None,
) -> TrainStep:  # fmt: skip
    """The compiled `step(state, batch, key) -> (state, metrics)`.

    `loss_fn(params, batch, key) -> (() loss, {name: () number})` sees the whole tree; gradients are taken for the
    trainable part only. metrics adds `loss`, `grad_norm` (global, before clipping), `lr` and `finite` (1 or 0), all
    () float32. Where loss or gradient norm is not finite the state comes back as it was, `step` included.

    `accumulate`: the batch is cut into so many equal pieces whose gradients are averaged, so that activations of one piece
    are in memory at a time. A `RandomLoss` gives what it gives on the whole batch; another loss gets a key of its own
    for every piece.

    `ema_warmup`: the decay of the average grows to `ema_decay` (`graftax.train.state.warmed_decay`).

    The state's arrays are donated, so the old state must not be used again; frozen leaves are not: they stay the same
    objects. With a `mesh` the new state is held to the layout of `shard_tree`, activations to that of `rules`. `compiler`:
    options of the compiler, as `jax.jit` takes them.

    Raises BadInput if `ema_decay` is not in [0, 1), if `accumulate` is below 1, and in the first step if a batch does not
    divide into its pieces.
    """
    if not 0 <= ema_decay < 1:
        raise BadInput(f"ema_decay: got {ema_decay!r}, expected a number in [0, 1)")
    if accumulate < 1:
        raise BadInput(f"accumulate: got {accumulate}, expected 1 or more")
    tx = optimiser.build()

    gradient = _gradient(loss_fn, accumulate, mesh, rules)

    @partial(jax.jit, donate_argnums=0, compiler_options=dict(compiler or {}))
    def update(state: TrainState, frozen: Params, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        beside = {RUN: {"ema": merge(state.ema, frozen), "step": state.step}} if getattr(loss_fn, "sees_run", False) else {}
        with activations(mesh, rules):
            (loss, metrics), grads = gradient(state.trainable, {**frozen, **beside}, place_batch(batch, mesh), key)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        decay = warmed_decay(ema_decay, state.step) if ema_warmup else ema_decay
        # A branch, not a choice of numbers, for which the old state would have to stay beside the new one.
        new = jax.lax.cond(finite, lambda: _advance(state, grads, norm, tx, decay), lambda: state)
        own = {"loss": loss, "grad_norm": norm, "lr": optimiser.rate(state.step), "finite": finite}
        logged = {name: jnp.asarray(value, jnp.float32) for name, value in {**metrics, **own}.items()}
        return constrain(new, mesh, rules), logged

    return TrainStep(update)


@dataclass(frozen=True, eq=False)
class TrainStep:
    """What `make_step` returns: the step, compiled in its first call.

    Attributes:
        update: (state without its frozen leaves, these, batch, key) -> (state without them, metrics), jitted. Frozen leaves
            travel beside the state, undonated: a teacher or the caller may hold the same arrays.
    """

    update: jax.stages.Wrapped

    def __call__(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        moving, metrics = self.update(dataclasses.replace(state, frozen={}), state.frozen, batch, key)
        return dataclasses.replace(moving, frozen=state.frozen), metrics

    def trace(self, state: Any, batch: Any, key: Any) -> jax.stages.Traced:
        """The program of a call, from arrays or from their shapes."""
        return self.update.trace(dataclasses.replace(state, frozen={}), state.frozen, batch, key)


def _gradient(loss_fn: LossFn, accumulate: int, mesh: Mesh | None, rules: AxisRules) -> Callable[..., Found]:
    """(trainable, frozen, batch, key) -> loss, metrics and gradient, means over `accumulate` pieces of the batch."""

    def one(trainable: Params, loss_of: Callable[[Params], tuple[jax.Array, Metrics]]) -> Found:
        found, grads = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        return found, constrain(grads, mesh, rules)

    def whole(trainable: Params, frozen: Params, batch: Batch, key: jax.Array) -> Found:
        return one(trainable, lambda p: loss_fn(merge(p, frozen), batch, key))

    def accumulated(trainable: Params, frozen: Params, batch: Batch, key: jax.Array) -> Found:
        random = isinstance(loss_fn, RandomLoss)
        drawn = loss_fn.draw(batch, key) if random else batch

        def of_piece(inputs: tuple[jax.Array, Batch]) -> Found:
            i, piece = inputs
            if random:
                return one(trainable, lambda p: loss_fn.given(merge(p, frozen), piece))
            return one(trainable, lambda p: loss_fn(merge(p, frozen), piece, jax.random.fold_in(key, i)))

        inputs = (jnp.arange(accumulate), _cut(drawn, accumulate, mesh))
        shapes = jax.eval_shape(of_piece, jax.tree.map(lambda x: x[0], inputs))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(lambda sums, piece: (jax.tree.map(jnp.add, sums, of_piece(piece)), None), zeros, inputs)
        return jax.tree.map(lambda x: x / accumulate, total)

    return whole if accumulate == 1 else accumulated


def _cut(batch: Batch, pieces: int, mesh: Mesh | None) -> Batch:
    """Leaves (b, ...) -> (pieces, b / pieces, ...). Neighbours go to different pieces, so that devices keep their rows."""
    sizes = {x.shape[0] for x in jax.tree.leaves(batch)}
    if any(size % pieces for size in sizes):
        raise BadInput(f"batch size {max(sizes)}: does not divide into {pieces} pieces of equal size (accumulate)")
    cut = jax.tree.map(lambda x: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1), batch)
    return place_batch(cut, mesh, axis=1)


def _advance(
    state: TrainState, grads: Params, norm: jax.Array, tx: optax.GradientTransformationExtraArgs, decay: float | jax.Array
) -> TrainState:
    updates, opt_state = tx.update(grads, state.opt_state, state.trainable, norm=norm)
    trainable = optax.apply_updates(state.trainable, updates)
    ema = update_ema(state.ema, trainable, decay)  # type: ignore[arg-type]
    return TrainState(state.step + 1, trainable, state.frozen, ema, opt_state)  # type: ignore[arg-type]


def sharded_state(
    params: Params, tx: optax.GradientTransformation, frozen: Sequence[str], mesh: Mesh, rules: AxisRules = RULES
) -> TrainState:
    """`create_state` on a mesh, made where it belongs: no device ever holds more of it than its part."""
    trainable, kept = split(shard_tree(params, mesh, rules), frozen)
    shapes = jax.eval_shape(lambda p: create_state(p, tx), trainable)
    state = jax.jit(lambda p: create_state(p, tx), out_shardings=tree_shardings(shapes, mesh, rules))(trainable)
    return dataclasses.replace(state, frozen=kept)


def train_job(
    init_params: Callable[[], Params], loss_fn: LossFn, optimiser: OptimiserConfig, *, ema_decay: float = 0.9999,
    ema_warmup: bool = False, frozen: Sequence[str] = (), mesh: Mesh | None = None,
    metadata: Mapping[str, Any] | None = None, evaluate: Callable[[Params], Mapping[str, Any]] | None = None,
    label: str = "train", flops_per_image: float = 0.0, rules: AxisRules = RULES, accumulate: int = 1,
    compiler: Mapping[str, str] | None = None,
) -> Job[TrainState]:  # fmt: skip
    """The `Job` that trains `init_params()` on `loss_fn`, ready for `fit`: used by every network of this package.

    `frozen` are path patterns (see `state.split`). `evaluate` gets the averaged parameters and returns what to log.
    `flops_per_image`: of a step, for the log (`graftax.models.cost.train_flops`). `compiler` as in `make_step`.
    `metadata` (JSON types) is stored with each checkpoint next to the optimiser's fields, the average's and `frozen`; a run
    that resumes must agree in all of it.
    """

    tx = optimiser.build()

    def init() -> TrainState:
        if mesh is None:
            return create_state(init_params(), tx, frozen)
        return sharded_state(init_params(), tx, frozen, mesh, rules)

    average = {"ema_decay": ema_decay, "ema_warmup": ema_warmup}
    step = make_step(loss_fn, optimiser, **average, mesh=mesh, rules=rules, accumulate=accumulate, compiler=compiler)
    facts = {"optimiser": dataclasses.asdict(optimiser), **average, "frozen": list(frozen)}
    return Job(
        init=init, step=step, mesh=mesh, label=label,
        metadata={**(metadata or {}), **facts}, flops_per_image=flops_per_image,
        evaluate=None if evaluate is None else lambda state: evaluate(state.ema_params),
    )  # fmt: skip
