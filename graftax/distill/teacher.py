"""What scions learn from: one pass of the frozen teacher gives every site's input and output."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax.blocks import Context
from graftax.diffusion import Noising
from graftax.distill.config import DistillConfig
from graftax.distill.groups import Units
from graftax.errors import BadInput
from graftax.models import Cond
from graftax.models.backbone import find
from graftax.models.forward import embed, prepare_params
from graftax.models.prediction import network_times
from graftax.models.stack import run_stack, runs, tap_runs
from graftax.ops.base import Params
from graftax.spec import ModelSpec, Step
from graftax.train.noising import noising_for

TIME, NOISE = range(2)  # streams of a step's key

Pairs = dict[str, tuple[Any, Any]]
"""Per group, the teacher's inputs at its sites, then its outputs: (s, b, n, d) float32 each, or dicts of such by stream."""


class Teacher:
    """The teacher as a source of regression pairs (arXiv 2506.05340, Eq. 2).

    An operator's input is what reaches it, adaLN's shift and scale included; its output is what leaves it, before the
    gate. A whole step's are the input of its span's first block and the output of the last. Beside the pairs goes the
    context that all blocks read. The teacher runs no further than its last site.

    Raises BadInput if a site's block does not run exactly once in the teacher's program, if the blocks of a span do
    not run one after the other, or if `process` (None: what such teachers are trained with) is not for the teacher.
    """

    def __init__(self, spec: ModelSpec, groups: Units, process: Noising | None, config: DistillConfig) -> None:
        sites = [(str(s), span) for group in groups.values() for s, span in zip(group.sites, group.spans, strict=True)]
        _check_runs(spec, sites)
        self._spec = up_to_last(spec, {block for _, span in sites for block in span})
        self._taps = tuple(sorted({name for group in groups.values() for name in (group.input, group.output)}))
        self._student = next((group.spec for group in groups.values()), spec)
        self._groups, self._process, self._config = groups, noising_for(spec, process), config

    def prepare(self, params: Params) -> Params:
        """The teacher's weights as `pairs` takes them. Do it once: scans need stacked copies; "unroll" copies nothing."""
        return prepare_params(self._spec, params, self._config.plan)

    def sample_pairs(self, prepared: Params, x0: jax.Array, cond: Cond, key: jax.Array) -> tuple[Pairs, Context]:
        """`pairs` at times drawn uniformly over the process and fresh noise: x0 (b, h, w, c) and its conditions."""
        t = self._process.draw(jax.random.fold_in(key, TIME), len(x0))
        noise = jax.random.normal(jax.random.fold_in(key, NOISE), x0.shape)
        return self.pairs(prepared, x0, cond, t, noise)

    def pairs(self, prepared: Params, x0: jax.Array, cond: Cond, t: jax.Array, noise: jax.Array) -> tuple[Pairs, Context]:
        """Run the teacher on q_sample(x0, t, noise) and the true conditions.

        x0, noise (b, h, w, c); t (b,), times of the process. Raises BadInput on images that are not the teacher's.
        """
        expected = self._spec.image_shape
        if x0.shape[1:] != expected:
            raise BadInput(f"batch image: shape {x0.shape}, expected (b, {', '.join(map(str, expected))})")
        x_t = self._process.q_sample(x0, t, noise)
        t = network_times(self._spec.prediction, self._process.model_times(t))
        state, context = embed(self._spec, prepared, x_t, t, cond, self._config.dtype)
        _, taps = run_stack(self._spec, prepared["blocks"], state, context, capture=self._taps, dtype=self._config.dtype)
        if self._student.frame != self._spec.frame:  # scions read things that the teacher's blocks do not
            _, own = find(self._student).embed(self._student, prepared, x_t, t, cond, self._config.dtype)
            context = dataclasses.replace(context, text=own.text, text_mask=own.text_mask, rope=own.rope)
        pairs = {
            name: (
                self._at(taps, group.input, [span[0] for span in group.spans]),
                self._at(taps, group.output, [span[-1] for span in group.spans]),
            )
            for name, group in self._groups.items()
        }
        return pairs, context

    def condition(self, batch: Mapping[str, Any]) -> Cond:
        """The conditions in a batch of data."""
        return dict(find(self._spec).condition(batch))

    def _at(self, taps: Mapping[str, Any], name: str, blocks: list[int]) -> Any:
        """A tap at some blocks: (s, b, n, d), or a dict of such by stream."""
        order = tap_runs(self._spec, name)
        runs = [order.index(block) for block in blocks]
        # Static slices, not a gather: XLA then drops the rows that nobody wants.
        return jax.tree.map(
            lambda leaf: jnp.stack([jax.lax.index_in_dim(leaf, run, keepdims=False) for run in runs]), taps[name]
        )


def _check_runs(spec: ModelSpec, sites: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    """Raise BadInput unless the blocks of all sites (name, blocks) run once, those of one site in turn."""
    order = np.array(runs(spec))
    for site, span in sites:
        for block in span:
            times = int((order == block).sum())
            if times != 1:
                raise BadInput(f"site {site}: its block runs {times} times in the teacher's program, expected once")
        if len(span) > 1 and not _in_turn(spec, span):
            raise BadInput(f"site {site}: the teacher does not run blocks {span} one after the other")


def _in_turn(spec: ModelSpec, span: tuple[int, ...]) -> bool:
    """Whether the program runs the blocks of `span` one by one, in this order, with nothing in between."""
    start = next(k for k, step in enumerate(spec.program) if span[0] in step.blocks)
    return spec.program[start : start + len(span)] == tuple(Step((block,)) for block in span)


def up_to_last(spec: ModelSpec, blocks: set[int]) -> ModelSpec:
    """`spec` without the steps of its program that come after all of `blocks`."""
    last = max(i for i, step in enumerate(spec.program) if blocks & set(step.blocks))
    return spec.replace(program=spec.program[: last + 1])
