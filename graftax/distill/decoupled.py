"""The modulations of a decoder that `graftax.decouple` made, by least squares: no gradient steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax.blocks import block_kind, slot_of
from graftax.data.feed import as_batches
from graftax.diffusion import Noising
from graftax.distill.closed_form import keyed
from graftax.distill.config import PAPER_BATCH
from graftax.distill.normal_equations import RIDGE, Sums, accumulate, moments, solve, zeros
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.arguments import as_key
from graftax.models.backbone import find
from graftax.models.prediction import network_times
from graftax.models.stages import stages
from graftax.ops.base import Params
from graftax.ops.modulation import Activated, Modulation
from graftax.surgery.replace import modulation_at, put_sites
from graftax.surgery.select import Site
from graftax.train.loop import Batch
from graftax.train.noising import noising_for

TIME, NOISE = range(2)  # streams of a step's key

LAST = ("final", "adaln")
"""Where a parameter tree keeps the modulation of the last layer."""


def fit_decoupled(
    teacher: Model, student: Model, data: Any, steps: int, *, batch_size: int = PAPER_BATCH,
    process: Noising | None = None, rng: jax.Array | None = None, ridge: float = RIDGE, show: bool = True,
) -> Model:  # fmt: skip
    """The student, a DiT of two stages, with the modulations of its decoder fitted to those of the teacher, the DiT that it
    was made of.

    The teacher's blocks are shifted, scaled and gated by affine maps of silu(time + class); the decoder's by maps of what
    the encoder makes of every token, which knows both. On `steps` batches of `data` (as `graftax.distill.distill` takes it)
    these are the maps with the least squared error, over tokens, times and images; of the last layer too. All other leaves
    are the same objects. Raises `BadInput` where the student has one stage, or is none of the teacher's, and where the data
    end.
    """
    two, spec = stages(student.spec), teacher.spec
    sites = [Site(i, "adaln") for step in two.decoder.program for i in step.blocks]
    if student.spec.depth != spec.depth or any(block_kind(block.kind).kind != "dit" for block in spec.blocks):
        raise BadInput(f"fit_decoupled: a teacher of {spec.depth} blocks, expected the DiT that decouple() was applied to")
    old = [modulation_at(spec, teacher.params, site) for site in sites]
    final: Params = teacher.params[LAST[0]][LAST[1]]
    kernel = jnp.concatenate([jnp.float32(k) for k, _ in old] + [jnp.asarray(final["kernel"])], axis=1)  # (d, q)
    bias = jnp.concatenate([jnp.float32(b) for _, b in old] + [jnp.asarray(final["bias"])])
    process = noising_for(spec, process)
    encoder, _ = two.prepare(student.params, "unroll")

    @jax.jit
    def step(sums: Sums, batch: Batch, key: jax.Array) -> Sums:
        x0, cond = batch["image"], dict(find(spec).condition(batch))
        t = process.draw(jax.random.fold_in(key, TIME), len(x0))
        x_t = process.q_sample(x0, t, jax.random.normal(jax.random.fold_in(key, NOISE), x0.shape))
        times = network_times(spec.prediction, process.model_times(t))
        made = two.encode(encoder, x_t, times, cond)  # (b, n, d)
        _, context = find(spec).embed(spec, teacher.params, x_t, times, cond, None)
        wanted = jax.nn.silu(context.vec) @ kernel + bias  # (b, q)
        return accumulate(sums, jax.nn.silu(made), jnp.broadcast_to(wanted[:, None], (*made.shape[:2], len(bias))))

    sums = zeros(*kernel.shape)
    batches, key = as_batches(data, batch_size, 0, spec), jax.random.key(0) if rng is None else as_key(rng)
    for batch, own in keyed(batches, steps, key, None, "modulations", show):
        sums = step(sums, batch, own)
    return _with_modulations(student, sites, sums, ridge)


def _with_modulations(student: Model, sites: list[Site], sums: Sums, ridge: float) -> Model:
    """The student with the least-squares maps at its decoder's sites and before its last layer."""
    slots = [slot_of(student.spec.blocks[site.block].kind, site.slot) for site in sites]
    operators = [slot.build(site.held(student.spec), student.spec.sizes) for slot, site in zip(slots, sites, strict=True)]
    kernel, bias = solve(sums, ridge)
    cuts = np.cumsum([operator.features for operator in operators if isinstance(operator, Modulation)])
    *maps, last = zip(np.split(np.float64(kernel), cuts, axis=1), np.split(np.float64(bias), cuts), strict=True)
    u, found = Activated(*moments(sums)), dict[Site, Params]()
    for site, operator, one in zip(sites, operators, maps, strict=True):
        assert isinstance(operator, Modulation), "by its role"
        (found[site],), _ = operator.fit([one], u)
    params = put_sites(student.spec, student.params, found)
    final = {**params[LAST[0]], LAST[1]: {"kernel": jnp.float32(last[0]), "bias": jnp.float32(last[1])}}
    return student.replace(params={**params, LAST[0]: final})
