"""Drawing where what blocks change is taken from earlier steps (`graftax.models.reuse`), as `Sampling.reuse` says."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax.diffusion import Sampling, Steps, guided, way_for
from graftax.diffusion.guidance import ModelFn
from graftax.diffusion.reuse import Table, parse_reuse
from graftax.diffusion.sampler import Memory
from graftax.errors import BadInput
from graftax.models.backbone import Cond, find
from graftax.models.prediction import as_called
from graftax.models.reuse import by_first_block, by_table, inside, prepare_reusing
from graftax.ops.base import Params
from graftax.spec import ModelSpec


def reusing_steps(
    spec: ModelSpec, params: Params, sampling: Sampling, null: Cond | None = None, dtype: DTypeLike | None = None
) -> Steps:
    """The steps that `graftax.sample` takes under `sampling.reuse`, on plain parameters; to be called inside of `jit`.

    `null`: the conditions' unconditional twin, None: the backbone's own. What is kept takes the memory of one state,
    float32, for every position of the program and image, twice that under guidance; the first block's test keeps two.
    """
    prepared, reuse, memory = prepare_reusing(spec, params), parse_reuse(sampling.reuse), Memory()
    if reuse is None:
        raise BadInput("reuse: got nothing, expected what is taken from earlier steps")

    def raw(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        runs, state, head = inside(spec, prepared, x, t, cond, dtype)
        if isinstance(reuse, Table):
            computed = None if memory.value is None else jnp.asarray(reuse.computed)[memory.call]
            state, memory.value = by_table(runs, state, computed, memory.value)
        else:
            state, memory.value = by_first_block(runs, state, reuse.threshold, memory.call == 0, memory.value)
        return head(state)

    return remembering_steps(spec, params, sampling, raw, memory, null)


def remembering_steps(
    spec: ModelSpec, params: Params, sampling: Sampling, raw: ModelFn, memory: Memory, null: Cond | None = None
) -> Steps:
    """Steps of a network `raw` that reads and writes `memory`, with guidance."""
    way = way_for(spec.prediction, sampling)

    def twin(cond: Any) -> Any:
        return find(spec).null(spec, params, cond) if null is None else null

    own = as_called(spec.prediction, raw, way.target, way.path)
    return Steps(guided(own, sampling.cfg_scale, twin, sampling.cfg_channels), sampling, way=way, memory=memory)
