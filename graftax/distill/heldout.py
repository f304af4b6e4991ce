"""How well scions imitate the teacher on held-out data: the same images, times and noise for every evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from graftax.diffusion import Process
from graftax.distill.config import PAPER_BATCH, DistillConfig
from graftax.distill.groups import Group, group_units, over_sites
from graftax.distill.layout import replicate, site_method
from graftax.distill.steps import MergedStep, StepGroup
from graftax.distill.teacher import Teacher
from graftax.errors import BadInput
from graftax.models.stack import Params
from graftax.spec import ModelSpec
from graftax.surgery.select import Site
from graftax.train.loop import Batch
from graftax.train.sharding import RULES, AxisRules, activations, place_batch


def heldout_errors(
    teacher: ModelSpec, student: ModelSpec, sites: Sequence[Site | MergedStep], process: Process, heldout: Batch,
    config: DistillConfig, *, seed: int = 0, batch_size: int = PAPER_BATCH, mesh: Mesh | None = None,
    rules: AxisRules = RULES,
) -> Callable[[Params, Params], dict[str, float]]:  # fmt: skip
    """A function (stacked scions, prepared teacher) -> numbers over a fixed set of (x0, t, noise).

    For each site "loss/blocks[3].mixer", its training loss, and "error/blocks[3].mixer", the relative error
    ||prediction - target|| / ||target|| with norms over the whole set; "loss" and "error" are their means over sites.
    An error of 0 is a perfect copy, 1 is what silence (all zeros) would score.

    heldout: image (n, h, w, c), label (n,). The times cover the process evenly, one per image in an order drawn from
    `seed`, as is the noise. Images beyond a multiple of `batch_size` (or of n, if smaller) are left out. Raises BadInput
    if there are no images or labels do not fit them. With a `mesh` scions and teacher lie on it, and images are split over
    it where their number divides.
    """
    x0, y = np.asarray(heldout["image"], np.float32), np.asarray(heldout["label"], np.int32)
    if x0.ndim != 4 or not len(x0) or y.shape != x0.shape[:1]:
        raise BadInput(f"held-out set: images {x0.shape}, labels {y.shape}, expected (n, h, w, c) and (n,), n >= 1")
    size = min(batch_size, len(x0))
    count = len(x0) // size * size
    rng = np.random.default_rng(seed)
    t = rng.permutation(((np.arange(count) + 0.5) / count * len(process)).astype(np.int32))
    noise = rng.standard_normal(x0[:count].shape, np.float32)
    groups = group_units(student, sites)
    source = Teacher(teacher, groups, process, config)
    names = [str(site) for group in groups.values() for site in group.sites]

    @jax.jit
    def measure(scions: Params, prepared: Params, *inputs: Any) -> jax.Array:
        with activations(mesh, rules):
            pairs = place_batch(source.pairs(prepared, *place_batch(inputs, mesh)), mesh, axis=1)
            rows = [
                over_sites(_site_sums(group, student, config), site_method(mesh, rules))(scions[name], *pairs[name])
                for name, group in groups.items()
            ]
        return replicate(jnp.concatenate(rows), mesh)  # (sites, 3)

    def evaluate(scions: Params, prepared: Params) -> dict[str, float]:
        parts = [slice(i, i + size) for i in range(0, count, size)]
        sums = np.stack([measure(scions, prepared, x0[p], y[p], t[p], noise[p]) for p in parts])  # (parts, sites, 3)
        losses = sums[..., 0].mean(0, np.float64)
        errors = np.sqrt(sums[..., 1].sum(0, np.float64) / sums[..., 2].sum(0, np.float64))
        per_site = {f"loss/{name}": v for name, v in zip(names, losses, strict=True)}
        per_site |= {f"error/{name}": v for name, v in zip(names, errors, strict=True)}
        return {name: float(v) for name, v in {"loss": losses.mean(), "error": errors.mean(), **per_site}.items()}

    return evaluate


def _site_sums(group: Group | StepGroup, student: ModelSpec, config: DistillConfig) -> Callable[..., jax.Array]:
    """(scion, inputs ..., targets) -> (3,): loss, sum of squared errors, sum of squared targets."""
    loss_fn, apply = group.loss_fn(student, config), group.apply_fn(student, config)

    def sums(scion: Params, *arrays: jax.Array) -> jax.Array:
        *inputs, target = arrays
        error = apply(scion, *inputs).astype(jnp.float32) - target
        return jnp.stack([loss_fn(scion, *arrays), jnp.square(error).sum(), jnp.square(target).sum()])

    return sums
