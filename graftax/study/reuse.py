"""A table of what a sampler may take from earlier steps, for a model by name: what `graftax reuse` finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from graftax.analyze.reuse import LONGEST, reuse_table
from graftax.diffusion.reuse import Table, check_share
from graftax.draw import weakened
from graftax.errors import BadInput
from graftax.evaluate.drawing import SampleConfig, whole_conditions
from graftax.models.cost import flops
from graftax.spec import ModelSpec
from graftax.study.subjects import open_subject


def find_reuse(
    name: str, prompts: str | None, sampled: Callable[[ModelSpec], SampleConfig], share: float, longest: int = LONGEST,
    **read: Any,
) -> tuple[Table, float]:  # fmt: skip
    """The table with which model `name` computes at most `share` of its blocks' runs, and what is left of its FLOPs.

    `prompts` and `read` as in `graftax.study.subjects.open_subject`; `sampled`: how models of a spec are drawn. One image
    for each prompt or class. Raises `BadInput` as that does, and as `graftax.analyze.reuse.reuse_table`.
    """
    check_share(share)
    if longest < 1:
        raise BadInput(f"longest: got {longest}, expected 1 or more")
    subject = open_subject(name, prompts, vet=sampled, **read)
    spec, config = subject.model.spec, sampled(subject.model.spec)
    cond = {key: jnp.asarray(value) for key, value in whole_conditions(spec, subject.cond).items()}
    null: Mapping[str, Any] | None = subject.null
    if null is not None:
        null = {key: jnp.asarray(value) for key, value in whole_conditions(spec, null).items()}
    table = reuse_table(
        subject.model, share=share, cond=cond, null_cond=null, longest=longest, rng=jax.random.key(config.seed),
        sampling=config.sampling,
    )  # fmt: skip
    return table, flops_left(spec, table)


def flops_left(spec: ModelSpec, table: Table) -> float:
    """Share of the FLOPs of all calls that a table leaves."""
    whole = flops(spec)
    each = [whole - flops(weakened(spec, (i,))) for i in range(len(spec.program))]
    saved = sum(own for row in table.computed for own, computed in zip(each, row, strict=True) if not computed)
    return 1 - saved / (whole * len(table.computed))
