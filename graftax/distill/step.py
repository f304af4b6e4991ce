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

from graftax.diffusion import Process
from graftax.distill.config import DistillConfig
from graftax.distill.groups import Group, group_units, over_sites, stack_scions
from graftax.distill.layout import replicate, split_batch
from graftax.distill.steps import MergedStep, StepGroup
from graftax.distill.teacher import Teacher
from graftax.models.stack import Params
from graftax.spec import ModelSpec
from graftax.surgery.select import Site
from graftax.train.loop import Batch, Metrics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DistillState:
    """All that stage 1 must keep; the teacher is not part of it.

    step () int32; `scions` {group: leaves (s, ...)}, the weights of a group's sites stacked; `opt_state` {group:
    leaves (s, ...)}, one optimiser per site.
    """

    step: jax.Array
    scions: Params
    opt_state: dict[str, optax.OptState]


DistillStep = Callable[[DistillState, Params, Batch, jax.Array], tuple[DistillState, Metrics]]


def create_state(
    student: ModelSpec, params: Params, sites: Sequence[Site | MergedStep], config: DistillConfig
) -> DistillState:
    """Initial state: copies of the scions in `params` (a whole parameter tree), optimisers at zero."""
    scions = stack_scions(params, group_units(student, sites))
    opt_state = {name: jax.vmap(config.build().init)(stack) for name, stack in scions.items()}
    return DistillState(jnp.zeros((), jnp.int32), scions, opt_state)


def make_distill_step(
    teacher: ModelSpec, student: ModelSpec, sites: Sequence[Site | MergedStep], process: Process,
    config: DistillConfig, *, mesh: Mesh | None = None, method: str = "auto",
) -> DistillStep:  # fmt: skip
    """The compiled `step(state, prepared, batch, key) -> (state, metrics)`.

    Each step draws t uniform over the process and fresh noise, runs the frozen teacher once on the noised batch with its
    true classes, and moves every scion towards the teacher's output given the teacher's input (arXiv 2506.05340, Eq. 2).
    A merged step is one site, its blocks and its projection the scion. Sites never touch each other: loss, gradient
    clipping and AdamW are per site, as if each were trained alone.

    `prepared` is the teacher as `Teacher.prepare` arranges it; batch: image (b, h, w, c), label (b,). metrics, () float32:
    `loss` (mean over sites), `grad_norm` (the largest site's, before clipping), `lr`, `finite` (1 or 0). Where any site's
    loss or gradient is not finite the state comes back as it was. State arrays are donated, the teacher's are not. With a
    `mesh` the batch is split over its data axes and the scions are on every device. `method`: see `over_sites`.

    Raises BadInput where `Teacher` does.
    """
    groups = group_units(student, sites)
    source = Teacher(teacher, groups, process, config)
    advance = {name: over_sites(_site_update(group, student, config), method) for name, group in groups.items()}

    @partial(jax.jit, donate_argnums=0)
    def step(state: DistillState, prepared: Params, batch: Batch, key: jax.Array) -> tuple[DistillState, Metrics]:
        x0, label = split_batch((batch["image"], batch["label"]), mesh)
        pairs = source.sample_pairs(prepared, x0, label, key)
        out = {name: advance[name](state.scions[name], state.opt_state[name], *pairs[name]) for name in groups}
        scions, opt_state = ({name: out[name][i] for name in groups} for i in (0, 1))
        losses, norms = (jnp.concatenate([out[name][i] for name in groups]) for i in (2, 3))  # (sites,) each
        finite = jnp.isfinite(losses).all() & jnp.isfinite(norms).all()
        new = replicate(DistillState(state.step + 1, scions, opt_state), mesh)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        metrics = {"loss": losses.mean(), "grad_norm": norms.max(), "lr": config.rate(state.step), "finite": finite}
        return kept, {name: value.astype(jnp.float32) for name, value in metrics.items()}

    return step


def _site_update(group: Group | StepGroup, student: ModelSpec, config: DistillConfig) -> Callable[..., tuple[Any, ...]]:
    """(scion, its optimiser state, inputs ..., targets (b, n, d)) -> (scion, optimiser state, () loss, () gradient norm)."""
    loss_fn, tx = group.loss_fn(student, config), config.build()

    def update(scion: Params, opt_state: optax.OptState, *arrays: jax.Array) -> tuple[Any, ...]:
        loss, grads = jax.value_and_grad(loss_fn)(scion, *arrays)
        updates, opt_state = tx.update(grads, opt_state, scion)
        return optax.apply_updates(scion, updates), opt_state, loss, optax.tree.norm(grads)

    return update
