"""Which blocks a sampler may leave out at which steps, measured on samples: a table for `Sampling.reuse`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from graftax.blocks import State
from graftax.diffusion import Sampling, SamplingFields, image_keys, initial_noise
from graftax.diffusion.reuse import Table, chosen
from graftax.diffusion.sampler import Memory
from graftax.draw import sampling_for
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.arguments import as_key
from graftax.models.backbone import Cond
from graftax.models.model import check_inputs, given_conditions, null_conditions
from graftax.models.reuse import by_table, inside, prepare_reusing
from graftax.ops.base import Params
from graftax.reusing import remembering_steps
from graftax.spec import ModelSpec

LONGEST = 3
"""Calls for which a change is taken at most."""


class Past(NamedTuple):
    """What calibration keeps.

    Attributes:
        changes: of the last calls, the newest first: what each position of the program added to the state.
        errors: (calls, longest, positions), so far.
    """

    changes: tuple[list[State], ...]
    errors: jax.Array


def reuse_errors(
    model: Model, labels: ArrayLike | None = None, *, cond: Mapping[str, ArrayLike] | None = None,
    null_cond: Mapping[str, ArrayLike] | None = None, longest: int = LONGEST, rng: jax.Array | None = None,
    sampling: Sampling | None = None, **settings: Unpack[SamplingFields],
) -> np.ndarray:  # fmt: skip
    """How much what a position of the program adds to the state differs from what it added some calls before.

    (calls, longest, positions) float32: mean |difference| over mean |value|, all streams, images and passes of guidance
    together, along samples that are computed whole; NaN where there is no such call. Conditions, `rng` and settings as in
    `graftax.sample`. Source: SmoothCache (Liu et al. 2024, arXiv 2411.10510), section 3. Raises `BadInput` as `sample`
    does, and on settings under which nothing can be reused.
    """
    if longest < 1:
        raise BadInput(f"longest: got {longest}, expected 1 or more")
    sampling = sampling_for(model.spec, sampling, **{**settings, "reuse": "first_block(0)"} if sampling is None else {})
    given = given_conditions(labels, cond)
    keys = image_keys(jax.random.key(0) if rng is None else as_key(rng), 0, len(next(iter(given.values()))))
    x = initial_noise(keys, sampling.steps, model.spec.image_shape)
    check_inputs(model.spec, x, jnp.zeros(len(x)), given)
    null = None if null_cond is None else null_conditions(given, null_cond)
    errors = np.array(_errors(model.spec, model.params, x, given, null, keys, sampling, longest))
    for call in range(min(longest, len(errors))):
        errors[call, call:] = np.nan
    return errors


def reuse_table(model: Model, labels: ArrayLike | None = None, share: float = 0.6, **how: Any) -> Table:
    """The table for `Sampling.reuse` (its text) with which at most `share` of the blocks' runs are computed, the rest taken
    from earlier calls where that errs least (`graftax.diffusion.reuse.chosen`); `how` as in `reuse_errors`."""
    return chosen(reuse_errors(model, labels, **how), share)


@functools.partial(jax.jit, static_argnames=("spec", "sampling", "longest"))
def _errors(
    spec: ModelSpec, params: Params, x: jax.Array, cond: Cond, null: Cond | None, keys: jax.Array, sampling: Sampling,
    longest: int,
) -> jax.Array:  # fmt: skip
    prepared, memory = prepare_reusing(spec, params), Memory()

    def raw(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        runs, state, head = inside(spec, prepared, x, t, cond)
        state, changes = by_table(runs, state, None, None)
        past = memory.value or Past((changes,) * longest, jnp.zeros((sampling.steps, longest, len(runs))))
        rows = jnp.stack([jnp.stack(list(map(_moved, changes, before))) for before in past.changes])
        memory.value = Past((changes, *past.changes[:-1]), past.errors.at[memory.call].set(rows))
        return head(state)

    return remembering_steps(spec, params, sampling, raw, memory, null).remembered(x, cond, keys, None).errors


def _moved(change: State, before: State) -> jax.Array:
    differences = [jnp.abs(change[name] - before[name]).sum() for name in change]
    return jnp.stack(differences).sum() / jnp.stack([jnp.abs(leaf).sum() for leaf in change.values()]).sum()
