"""One update of all scions at once, as one compiled function: the teacher runs once for all sites."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from graftax.blocks import Context
from graftax.diffusion import Noising
from graftax.distill.config import DistillConfig
from graftax.distill.groups import Group, group_units, over_sites, stack_scions
from graftax.distill.placing import constrain_stacked, sample_pairs, site_method, stacked_shardings
from graftax.distill.steps import StepGroup, StepSite
from graftax.distill.teacher import Teacher
from graftax.ops.base import Params
from graftax.spec import ModelSpec
from graftax.surgery.select import Site
from graftax.train.loop import Batch, Metrics
from graftax.train.sharding import RULES, AxisRules, activations, constrain, shard_tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DistillState:
    """All that stage 1 must keep; the teacher is not part of it.

    Attributes:
        step: () int32.
        scions: {group: leaves (s, ...)}, the weights of a group's sites stacked.
        opt_state: {group: leaves (s, ...)}, one optimiser per site.
    """

    step: jax.Array
    scions: Params
    opt_state: dict[str, optax.OptState]


def create_state(
    student: ModelSpec, params: Params, sites: Sequence[Site | StepSite], config: DistillConfig
) -> DistillState:
    """Initial state: copies of the scions in `params` (a whole parameter tree), optimisers at zero."""
    scions = stack_scions(params, group_units(student, sites))
    opt_state = {name: jax.vmap(config.build().init)(stack) for name, stack in scions.items()}
    return DistillState(jnp.zeros((), jnp.int32), scions, opt_state)


def sharded_state(
    student: ModelSpec, params: Params, sites: Sequence[Site | StepSite], config: DistillConfig, mesh: Mesh,
    rules: AxisRules = RULES,
) -> DistillState:  # fmt: skip
    """`create_state` on a mesh, made where it belongs: every leaf is split like a parameter, its axis s stays whole."""
    make = partial(create_state, student, sites=sites, config=config)
    params = shard_tree(params, mesh, rules)
    return jax.jit(make, out_shardings=stacked_shardings(jax.eval_shape(make, params), mesh, rules))(params)


def make_distill_step(
    teacher: ModelSpec, student: ModelSpec, sites: Sequence[Site | StepSite], process: Noising,
    config: DistillConfig, *, mesh: Mesh | None = None, method: str = "auto", rules: AxisRules = RULES,
) -> jax.stages.Wrapped:  # fmt: skip
    """The jitted `step(state, prepared, batch, key) -> (state, metrics)`.

    Each step draws t uniform over the process and fresh noise, runs the frozen teacher once on the noised batch with its
    true classes, and moves every scion towards the teacher's output given the teacher's input (arXiv 2506.05340, Eq. 2).
    A whole step is one site, its blocks and its projection the scion. Sites never touch each other: loss, gradient
    clipping and AdamW are per site, as if each were trained alone.

    `prepared` is the teacher as `Teacher.prepare` arranges it; batch: image (b, h, w, c) and its conditions, label (b,).
    metrics, () float32: `loss` (mean over sites), `grad_norm` (the largest site's, before clipping), `lr`, `finite` (1 or
    0). Where any site's loss or gradient is not finite the state comes back as it was. State arrays are donated, the
    teacher's are not. With a `mesh` the batch is split over its data axes, scions and optimisers are split like parameters,
    and gradients meet where their part of the scion is. `method`: see `over_sites`; "auto" is "map" where weights are split
    over devices.

    Raises BadInput where `Teacher` does.
    """
    groups = group_units(student, sites)
    source = Teacher(teacher, groups, process, config)
    method = site_method(mesh, rules) if method == "auto" else method
    updates = {name: _site_update(group, config, mesh, rules) for name, group in groups.items()}

    @partial(jax.jit, donate_argnums=0)
    def step(state: DistillState, prepared: Params, batch: Batch, key: jax.Array) -> tuple[DistillState, Metrics]:
        pairs, context = sample_pairs(source, prepared, batch, key, mesh, rules)
        out = {
            name: over_sites(partial(update, context), method)(state.scions[name], state.opt_state[name], *pairs[name])
            for name, update in updates.items()
        }
        scions, opt_state = ({name: out[name][i] for name in groups} for i in (0, 1))
        losses, norms = (jnp.concatenate([out[name][i] for name in groups]) for i in (2, 3))  # (sites,) each
        finite = jnp.isfinite(losses).all() & jnp.isfinite(norms).all()
        new = constrain_stacked(DistillState(state.step + 1, scions, opt_state), mesh, rules)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        metrics = {"loss": losses.mean(), "grad_norm": norms.max(), "lr": config.rate(state.step), "finite": finite}
        return kept, {name: value.astype(jnp.float32) for name, value in metrics.items()}

    return step


def _site_update(
    group: Group | StepGroup, config: DistillConfig, mesh: Mesh | None, rules: AxisRules
) -> Callable[..., tuple[Any, ...]]:
    """(context, scion, its optimiser state, input, target (b, n, d)) -> (scion, optimiser state, () loss, () gradient
    norm)."""
    loss_fn, tx = group.loss_fn(config), config.build()

    def update(context: Context, scion: Params, opt_state: optax.OptState, x: Any, wanted: Any) -> tuple[Any, ...]:
        with activations(mesh, rules):
            loss, grads = jax.value_and_grad(loss_fn)(scion, context, x, wanted)
        grads = constrain(grads, mesh, rules)
        updates, opt_state = tx.update(grads, opt_state, scion)
        return optax.apply_updates(scion, updates), opt_state, loss, optax.tree.norm(grads)

    return update
