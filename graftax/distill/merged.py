"""Steps that merge blocks by a learned projection, distilled as a whole: what the blocks did one after the other, the step
learns to do on one input (the parallel blocks of the grafting paper, arXiv 2506.05340)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from graftax.blocks import Context, Taps, alone, as_state, block_kind
from graftax.distill.config import DistillConfig
from graftax.distill.losses import regression_loss
from graftax.distill.sites import learnt_sites, scion_sites
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.merge import MERGES
from graftax.models.stack import apply_stack
from graftax.ops.base import Params
from graftax.spec import BlockSpec, ModelSpec, Step, members
from graftax.surgery.select import Selector, Site


@dataclass(frozen=True)
class MergedStep:
    """A step of a student's program with a learned projection: both its blocks and the projection are trained.

    Attributes:
        step: of the program.
    """

    step: Step

    def __str__(self) -> str:
        return f"merges[{','.join(map(str, self.step.blocks))}]"


@dataclass(frozen=True)
class StepGroup:
    """Merged steps whose blocks hold equal operators, in order of the program. Axis s counts them.

    Attributes:
        spec: of the student.
        step: one of them, its blocks numbered from 0.
        blocks: its blocks.
        sites: all of them.
    """

    spec: ModelSpec
    step: Step
    blocks: tuple[BlockSpec, ...]
    sites: tuple[MergedStep, ...]

    input = "block/in"
    output = "block/out"
    ridge = 1e-2  # outputs of blocks that read one input are nearly collinear: a weaker one fits hardly better, trains worse

    @property
    def spans(self) -> tuple[tuple[int, ...], ...]:
        """The blocks of each step: it learns from the first one's input and the last one's output."""
        return tuple(site.step.blocks for site in self.sites)

    def apply_fn(self, config: DistillConfig) -> Callable[[Params, Context, Any], Any]:
        """One step as a function: (its weights, context, x (b, n, d)) -> (b, n, d); states of several streams as dicts."""
        return lambda scion, context, x: self._run(config, scion, context, x)[0]

    def loss_fn(self, config: DistillConfig) -> Callable[[Params, Context, Any, Any], jax.Array]:
        """Loss of one step: (its weights, context, x (b, n, d), the teacher's output (b, n, d)) -> () float32."""
        apply = self.apply_fn(config)

        def loss(scion: Params, context: Context, x: Any, wanted: Any) -> jax.Array:
            return regression_loss(config.step_loss, apply(scion, context, x), wanted, config.huber_delta)

        return loss

    def linear_part(
        self, config: DistillConfig, scion: Params, context: Context, x: jax.Array, wanted: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What the projection of one step sees, the m block outputs (b, n, m d), and what it lacks (b, n, d).

        That is up to the teacher's output, or for `config.merge_target` "residual_sum" to x plus the change that each block
        makes of x. The latter is no linear map of the block outputs alone, for x is not among them: fitting finds the
        closest one. Raises `BadInput` where there are several streams, each with a projection of its own.
        """
        if isinstance(x, dict):
            raise BadInput("calibration of merged steps: the model has several streams, expected 0 batches")
        out, taps = self._run(config, scion, context, x, capture=("block/out",))
        outs = taps["block/out"]  # (m, b, n, d)
        target = x + (outs - x).sum(0) if config.merge_target == "residual_sum" else wanted
        return jnp.concatenate(list(outs), axis=-1), target - out

    def _run(
        self, config: DistillConfig, scion: Params, context: Context, x: Any, capture: tuple[str, ...] = ()
    ) -> tuple[Any, Taps]:
        local = self.spec.replace(blocks=self.blocks, program=(self.step,), adapters=())
        state, taps = apply_stack(
            local, scion["blocks"], as_state(x), context, merges=scion[MERGES], plan="unroll", capture=capture,
            dtype=config.dtype,
        )  # fmt: skip
        return alone(state), taps

    def readout(self, scion: Params) -> Params:
        """The projection of a step."""
        return scion[MERGES][self._own]

    def with_readout(self, scion: Params, layer: Params) -> Params:
        """The step's weights with another projection."""
        return {**scion, MERGES: {self._own: layer}}

    def weights(self, params: Params) -> list[Params]:
        """The weights of every step, its blocks numbered from 0: {"blocks": {"00", ...}, "merges": {"00_01"}}."""
        return [
            {
                "blocks": {f"{j:02d}": params["blocks"][self.spec.block_key(i)] for j, i in enumerate(span)},
                MERGES: {self._own: params[MERGES][self.spec.merge_key(span)]},
            }
            for span in self.spans
        ]

    def install(self, params: Params, scions: Iterable[Params]) -> Params:
        """`params` with the weights of every step in their places; inverse of `weights`."""
        blocks, merges = dict(params["blocks"]), dict(params[MERGES])
        for span, scion in zip(self.spans, scions, strict=True):
            blocks |= {self.spec.block_key(i): scion["blocks"][f"{j:02d}"] for j, i in enumerate(span)}
            merges[self.spec.merge_key(span)] = scion[MERGES][self._own]
        return {**params, "blocks": blocks, MERGES: merges}

    @property
    def _own(self) -> str:
        """Key of the projection among a step's own weights."""
        return "_".join(f"{j:02d}" for j in self.step.blocks)


def merged_steps(spec: ModelSpec) -> tuple[MergedStep, ...]:
    """The steps of `spec` that have a projection. Raises `BadInput` where one is looped or scaled or two share a block."""
    steps = [step for step in spec.program if step.merge == "project"]
    if odd := [step for step in steps if step != Step(step.blocks, "project")]:
        raise BadInput(f"distillation: {odd[0]} is looped or scaled, expected merged steps that run once")
    blocks = [i for step in steps for i in step.blocks]
    if shared := [i for i in blocks if blocks.count(i) > 1]:
        raise BadInput(f"distillation: block {shared[0]} runs in two merged steps, expected one, which then trains it")
    return tuple(map(MergedStep, steps))


def group_steps(spec: ModelSpec, sites: Iterable[MergedStep]) -> dict[str, StepGroup]:
    """Groups of merged steps of a student of `spec`, under names that say what they are: "0_step_mha_mlp_mha_mlp"."""
    sites = list(sites)

    def local(site: MergedStep) -> tuple[Step, tuple[BlockSpec, ...]]:
        ids = site.step.blocks
        return dataclasses.replace(site.step, blocks=tuple(range(len(ids)))), tuple(spec.blocks[i] for i in ids)

    return {
        f"{i}_step_{_kinds(blocks)}": StepGroup(spec, step, blocks, tuple(sites[k] for k in places))
        for i, ((step, blocks), places) in enumerate(members(map(local, sites)).items())
    }


def _kinds(blocks: Iterable[BlockSpec]) -> str:
    return "_".join(block[slot].kind for block in blocks for slot in block_kind(block.kind).tapped)


def regression_units(student: Model, sites: Selector | None) -> tuple[Site | MergedStep, ...]:
    """What stage 1 trains: the selected sites, or where `sites` is None all merged steps and all scions outside of them.

    Raises `BadInput` where there are none.
    """
    steps = merged_steps(student.spec) if sites is None else ()
    if not steps:
        return scion_sites(student, sites)
    inside = {i for step in steps for i in step.step.blocks}
    return (*(site for site in learnt_sites(student) if site.block not in inside), *steps)
