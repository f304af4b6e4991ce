"""How well scions imitate the teacher on held-out data: the same images, times and noise for every evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from graftax.blocks import Context
from graftax.diffusion import Noising, heldout_set
from graftax.distill.config import PAPER_BATCH, DistillConfig
from graftax.distill.groups import Group, group_units, over_sites
from graftax.distill.placing import replicate, site_method
from graftax.distill.steps import StepGroup, StepSite
from graftax.distill.teacher import Teacher
from graftax.ops.base import Params
from graftax.spec import ModelSpec
from graftax.surgery.select import Site
from graftax.train.sharding import RULES, AxisRules, activations, place_batch


def heldout_errors(
    teacher: ModelSpec, student: ModelSpec, sites: Sequence[Site | StepSite], process: Noising,
    data: Mapping[str, Any], config: DistillConfig, *, seed: int = 0, batch_size: int = PAPER_BATCH,
    mesh: Mesh | None = None, rules: AxisRules = RULES,
) -> Callable[[Params, Params], dict[str, float]]:  # fmt: skip
    """A function (stacked scions, prepared teacher) -> numbers over a fixed set of (x0, t, noise).

    For each site "loss/blocks[3].mixer", its training loss, and "error/blocks[3].mixer", the relative error
    ||prediction - target|| / ||target|| with norms over the whole set; "loss" and "error" are their means over sites.
    An error of 0 is a perfect copy, 1 is what silence (all zeros) would score.

    `data`: image (n, h, w, c) and what the teacher is conditioned on, label (n,); see `graftax.diffusion.heldout_set`, whose
    errors are raised. With a `mesh` scions and teacher lie on it, and images are split over it where their number divides.
    """
    heldout = heldout_set(data, process, seed=seed, batch_size=batch_size)
    groups = group_units(student, sites)
    source = Teacher(teacher, groups, process, config)
    names = [str(site) for group in groups.values() for site in group.sites]

    @jax.jit
    def measure(scions: Params, prepared: Params, *inputs: Any) -> jax.Array:
        with activations(mesh, rules):
            pairs, context = source.pairs(prepared, *place_batch(inputs, mesh))
            pairs = place_batch(pairs, mesh, axis=1)
            rows = [
                over_sites(partial(_site_sums(group, config), context), site_method(mesh, rules))(scions[name], *pairs[name])
                for name, group in groups.items()
            ]
        return replicate(jnp.concatenate(rows), mesh)  # (sites, 3)

    def evaluate(scions: Params, prepared: Params) -> dict[str, float]:
        found = [measure(scions, prepared, b["image"], source.condition(b), t, noise) for b, t, noise in heldout.batches()]
        sums = np.stack(found)  # (parts, sites, 3)
        losses = sums[..., 0].mean(0, np.float64)
        errors = np.sqrt(sums[..., 1].sum(0, np.float64) / sums[..., 2].sum(0, np.float64))
        per_site = {f"loss/{name}": v for name, v in zip(names, losses, strict=True)}
        per_site |= {f"error/{name}": v for name, v in zip(names, errors, strict=True)}
        return {name: float(v) for name, v in {"loss": losses.mean(), "error": errors.mean(), **per_site}.items()}

    return evaluate


def _site_sums(group: Group | StepGroup, config: DistillConfig) -> Callable[..., jax.Array]:
    """(context, scion, input, targets) -> (3,): loss, sum of squared errors, sum of squared targets."""
    loss_fn, apply = group.loss_fn(config), group.apply_fn(config)

    def squares(tree: Any) -> jax.Array:
        leaves = [jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)]
        return sum(leaves[1:], leaves[0])

    def sums(context: Context, scion: Params, x: Any, wanted: Any) -> jax.Array:
        out = apply(scion, context, x)
        error = jax.tree.map(lambda a, b: a.astype(jnp.float32) - b, out, wanted)
        return jnp.stack([loss_fn(scion, context, x, wanted), squares(error), squares(wanted)])

    return sums
