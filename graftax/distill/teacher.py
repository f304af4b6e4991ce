"""What scions learn from: one pass of the frozen teacher gives every site's input and output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from graftax.diffusion import Process
from graftax.distill.config import DistillConfig
from graftax.distill.groups import Groups
from graftax.errors import BadInput
from graftax.models.dit import forward_prepared, prepare_params
from graftax.models.stack import Params
from graftax.spec import ModelSpec
from graftax.surgery.select import Site

Pairs = dict[str, tuple[jax.Array, jax.Array]]
"""Per group, the teacher's inputs and outputs at its sites: (s, b, n, d) float32 each."""


class Teacher:
    """The teacher as a source of regression pairs (arXiv 2506.05340, Eq. 2).

    An input is what reaches the operator, adaLN's shift and scale included; an output is what leaves it, before the
    gate. The teacher runs no further than its last site.

    Raises BadInput if a site's block does not run exactly once in the teacher's program.
    """

    def __init__(self, spec: ModelSpec, groups: Groups, process: Process, config: DistillConfig) -> None:
        sites = [site for group in groups.values() for site in group.sites]
        self._rows = _rows(spec, sites)
        self._spec = _up_to_last(spec, {site.block for site in sites})
        self._taps = tuple(f"{slot}/{end}" for slot in sorted({s.slot for s in sites}) for end in ("in", "out"))
        self._groups, self._process, self._config = groups, process, config

    def prepare(self, params: Params) -> Params:
        """The teacher's weights as `pairs` takes them. Do it once: scans need stacked copies; "unroll" copies nothing."""
        return prepare_params(self._spec, params, self._config.plan)

    def pairs(self, prepared: Params, x0: jax.Array, label: jax.Array, t: jax.Array, noise: jax.Array) -> Pairs:
        """Run the teacher on q_sample(x0, t, noise) and the true classes.

        x0, noise (b, h, w, c); label, t (b,) int, t counting the steps of the process. Returns `Pairs`. Raises
        BadInput on images that are not the teacher's.
        """
        expected = (self._spec.input_size, self._spec.input_size, self._spec.in_channels)
        if x0.shape[1:] != expected:
            raise BadInput(f"batch image: shape {x0.shape}, expected (b, {', '.join(map(str, expected))})")
        x_t = self._process.q_sample(x0, t, noise)
        t = jnp.asarray(self._process.timestep_map)[t]
        _, taps = forward_prepared(
            self._spec, prepared, x_t, t, label, plan=self._config.plan, capture=self._taps, dtype=self._config.dtype
        )
        return {
            name: (self._at(taps, group.sites, "in"), self._at(taps, group.sites, "out"))
            for name, group in self._groups.items()
        }

    def _at(self, taps: Mapping[str, jax.Array], sites: Sequence[Site], end: str) -> jax.Array:
        # Static slices, not a gather: XLA then drops the rows that nobody wants.
        rows = [jax.lax.index_in_dim(taps[f"{s.slot}/{end}"], self._rows[s.block], keepdims=False) for s in sites]
        return jnp.stack(rows)  # (s, b, n, d)


def _rows(spec: ModelSpec, sites: Sequence[Site]) -> dict[int, int]:
    """The row that each site's block has in a tap: its place in the order in which blocks run."""
    order = np.array([block for step in spec.program for block in step.blocks * step.loops])
    for site in sites:
        runs = int((order == site.block).sum())
        if runs != 1:
            raise BadInput(f"site {site}: its block runs {runs} times in the teacher's program, expected once")
    return {site.block: int(np.flatnonzero(order == site.block)[0]) for site in sites}


def _up_to_last(spec: ModelSpec, blocks: set[int]) -> ModelSpec:
    """`spec` without the steps of its program that come after all of `blocks`."""
    last = max(i for i, step in enumerate(spec.program) if blocks & set(step.blocks))
    return spec.replace(program=spec.program[: last + 1])
