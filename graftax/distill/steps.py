"""Steps that merge blocks by a learned projection, distilled as a whole: what the blocks did one after the other, the step
learns to do on one input (the parallel blocks of the grafting paper, arXiv 2506.05340)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from graftax.distill.config import DistillConfig
from graftax.distill.losses import regression_loss
from graftax.distill.sites import scion_sites
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.stack import Params, apply_stack
from graftax.spec import BlockSpec, ModelSpec, Step, block_key, merge_key
from graftax.surgery.select import Selector, Site

CONDITIONING = "c"
"""Name of the conditioning among the inputs of a group."""


@dataclass(frozen=True)
class MergedStep:
    """A step of a student's program with a learned projection: both its blocks and the projection are trained."""

    step: Step

    def __str__(self) -> str:
        return f"merges[{','.join(map(str, self.step.blocks))}]"


@dataclass(frozen=True)
class StepGroup:
    """Merged steps whose blocks hold equal operators, in order of the program. Axis s counts them.

    `step` and `blocks` describe one of them, its blocks numbered from 0.
    """

    step: Step
    blocks: tuple[BlockSpec, ...]
    sites: tuple[MergedStep, ...]

    inputs = ("block/in", CONDITIONING)
    output = "block/out"
    ridge = 1e-2  # outputs of blocks that read one input are nearly collinear: a weaker one fits hardly better, trains worse

    @property
    def spans(self) -> tuple[tuple[int, ...], ...]:
        """The blocks of each step: it learns from the first one's input and the last one's output."""
        return tuple(site.step.blocks for site in self.sites)

    def apply_fn(self, spec: ModelSpec, config: DistillConfig) -> Callable[..., jax.Array]:
        """One step as a function: (its weights, x (b, n, d), c (b, d)) -> (b, n, d)."""
        local = self._local(spec)

        def apply(scion: Params, x: jax.Array, c: jax.Array) -> jax.Array:
            return apply_stack(local, scion["blocks"], x, c, merges=scion["merges"], plan="unroll", dtype=config.dtype)[0]

        return apply

    def loss_fn(self, spec: ModelSpec, config: DistillConfig) -> Callable[..., jax.Array]:
        """Loss of one step: (its weights, x (b, n, d), c (b, d), the teacher's output (b, n, d)) -> () float32."""
        apply = self.apply_fn(spec, config)

        def loss(scion: Params, x: jax.Array, c: jax.Array, target: jax.Array) -> jax.Array:
            return regression_loss(config.step_loss, apply(scion, x, c), target, config.huber_delta)

        return loss

    def linear_part(
        self, spec: ModelSpec, config: DistillConfig, scion: Params, x: jax.Array, c: jax.Array, target: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What the projection of one step sees, the m block outputs (b, n, m d), and what it lacks (b, n, d).

        That is up to the teacher's output, or for `config.merge_target` "residual_sum" to x plus the change that each block
        makes of x. The latter is no linear map of the block outputs alone, for x is not among them: fitting finds the
        closest one.
        """
        out, taps = apply_stack(
            self._local(spec), scion["blocks"], x, c, merges=scion["merges"], plan="unroll", capture=("block/out",),
            dtype=config.dtype,
        )  # fmt: skip
        outs = taps["block/out"]  # (m, b, n, d)
        wanted = x + (outs - x).sum(0) if config.merge_target == "residual_sum" else target
        return jnp.concatenate(list(outs), axis=-1), wanted - out

    def readout(self, scion: Params) -> Params:
        """The projection of a step."""
        return scion["merges"][merge_key(self.step.blocks)]

    def with_readout(self, scion: Params, layer: Params) -> Params:
        """The step's weights with another projection."""
        return {**scion, "merges": {merge_key(self.step.blocks): layer}}

    def weights(self, params: Params) -> list[Params]:
        """The weights of every step, its blocks numbered from 0: {"blocks": {"00", ...}, "merges": {"00_01"}}."""
        own = merge_key(self.step.blocks)
        return [
            {
                "blocks": {block_key(j): params["blocks"][block_key(i)] for j, i in enumerate(span)},
                "merges": {own: params["merges"][merge_key(span)]},
            }
            for span in self.spans
        ]

    def install(self, params: Params, scions: Iterable[Params]) -> Params:
        """`params` with the weights of every step in their places; inverse of `weights`."""
        blocks, merges = dict(params["blocks"]), dict(params["merges"])
        for span, scion in zip(self.spans, scions, strict=True):
            blocks |= {block_key(i): scion["blocks"][block_key(j)] for j, i in enumerate(span)}
            merges[merge_key(span)] = scion["merges"][merge_key(self.step.blocks)]
        return {**params, "blocks": blocks, "merges": merges}

    def _local(self, spec: ModelSpec) -> ModelSpec:
        return spec.replace(blocks=self.blocks, program=(self.step,), adapters=())


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
    found: dict[tuple[Step, tuple[BlockSpec, ...]], list[MergedStep]] = {}
    for site in sites:
        local = dataclasses.replace(site.step, blocks=tuple(range(len(site.step.blocks))))
        found.setdefault((local, tuple(spec.blocks[i] for i in site.step.blocks)), []).append(site)
    return {
        f"{i}_step_{'_'.join(op.kind for block in blocks for op in (block.mixer, block.mlp))}": StepGroup(
            step, blocks, tuple(members)
        )
        for i, ((step, blocks), members) in enumerate(found.items())
    }


def regression_units(student: Model, sites: Selector | None) -> tuple[Site | MergedStep, ...]:
    """What stage 1 trains: the selected sites, or where `sites` is None all merged steps and all scions outside of them.

    Raises `BadInput` where there are none.
    """
    steps = merged_steps(student.spec) if sites is None else ()
    if not steps:
        return scion_sites(student, sites)
    inside = {i for step in steps for i in step.step.blocks}
    held = scion_sites(student, None) if student.meta.sites else ()
    return (*(site for site in held if site.block not in inside), *steps)
