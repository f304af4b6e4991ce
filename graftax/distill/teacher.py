"""What scions learn from: one pass of the frozen teacher gives every site's input and output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from graftax.diffusion import Process
from graftax.distill.config import DistillConfig
from graftax.distill.groups import Units
from graftax.distill.steps import CONDITIONING
from graftax.errors import BadInput
from graftax.models.dit import embed, prepare_params
from graftax.models.stack import Params, run_stack
from graftax.spec import ModelSpec, Step

TIME, NOISE = range(2)  # streams of a step's key

Pairs = dict[str, tuple[jax.Array, ...]]
"""Per group, the teacher's inputs at its sites, then its outputs: (s, b, n, d) float32 each, the conditioning (s, b, d)."""


class Teacher:
    """The teacher as a source of regression pairs (arXiv 2506.05340, Eq. 2).

    An operator's input is what reaches it, adaLN's shift and scale included; its output is what leaves it, before the
    gate. A merged step's are the input of its first block, with the conditioning, and the output of its last one. The
    teacher runs no further than its last site.

    Raises BadInput if a site's block does not run exactly once in the teacher's program, or if the blocks of a merged step
    do not run one after the other.
    """

    def __init__(self, spec: ModelSpec, groups: Units, process: Process, config: DistillConfig) -> None:
        sites = [(str(s), span) for group in groups.values() for s, span in zip(group.sites, group.spans, strict=True)]
        self._rows = _rows(spec, sites)
        self._spec = up_to_last(spec, {block for _, span in sites for block in span})
        taps = {name for group in groups.values() for name in (*group.inputs, group.output)}
        self._taps = tuple(sorted(taps - {CONDITIONING}))
        self._groups, self._process, self._config = groups, process, config

    def prepare(self, params: Params) -> Params:
        """The teacher's weights as `pairs` takes them. Do it once: scans need stacked copies; "unroll" copies nothing."""
        return prepare_params(self._spec, params, self._config.plan)

    def sample_pairs(self, prepared: Params, x0: jax.Array, label: jax.Array, key: jax.Array) -> Pairs:
        """`pairs` at times drawn uniformly over the process and fresh noise: x0 (b, h, w, c), label (b,) int."""
        t = jax.random.randint(jax.random.fold_in(key, TIME), label.shape, 0, len(self._process))
        noise = jax.random.normal(jax.random.fold_in(key, NOISE), x0.shape)
        return self.pairs(prepared, x0, label, t, noise)

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
        options = {"plan": self._config.plan, "dtype": self._config.dtype}
        x, c = embed(self._spec, prepared, x_t, t, label, self._config.dtype)
        _, taps = run_stack(self._spec, prepared["blocks"], x, c, capture=self._taps, **options)
        return {
            name: (
                *(self._at(taps, c, tap, [span[0] for span in group.spans]) for tap in group.inputs),
                self._at(taps, c, group.output, [span[-1] for span in group.spans]),
            )
            for name, group in self._groups.items()
        }

    def _at(self, taps: Mapping[str, jax.Array], c: jax.Array, name: str, blocks: list[int]) -> jax.Array:
        if name == CONDITIONING:
            return jnp.broadcast_to(c, (len(blocks), *c.shape))  # (s, b, d)
        # Static slices, not a gather: XLA then drops the rows that nobody wants.
        rows = [jax.lax.index_in_dim(taps[name], self._rows[block], keepdims=False) for block in blocks]
        return jnp.stack(rows)  # (s, b, n, d)


def _rows(spec: ModelSpec, sites: Iterable[tuple[str, tuple[int, ...]]]) -> dict[int, int]:
    """The row that each block of the sites (name, blocks) has in a tap: its place in the order in which blocks run."""
    order = np.array([block for step in spec.program for block in step.blocks * step.loops])
    rows: dict[int, int] = {}
    for site, span in sites:
        for block in span:
            runs = int((order == block).sum())
            if runs != 1:
                raise BadInput(f"site {site}: its block runs {runs} times in the teacher's program, expected once")
            rows[block] = int(np.flatnonzero(order == block)[0])
        if len(span) > 1 and not _in_turn(spec, span):
            raise BadInput(f"site {site}: the teacher does not run blocks {span} one after the other")
    return rows


def _in_turn(spec: ModelSpec, span: tuple[int, ...]) -> bool:
    """Whether the program runs the blocks of `span` one by one, in this order, with nothing in between."""
    start = next(k for k, step in enumerate(spec.program) if span[0] in step.blocks)
    return spec.program[start : start + len(span)] == tuple(Step((block,)) for block in span)


def up_to_last(spec: ModelSpec, blocks: set[int]) -> ModelSpec:
    """`spec` without the steps of its program that come after all of `blocks`."""
    last = max(i for i, step in enumerate(spec.program) if blocks & set(step.blocks))
    return spec.replace(program=spec.program[: last + 1])
