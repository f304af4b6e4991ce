"""Steps of a student's program that are distilled as a whole: what blocks of the teacher did one after the other, the step
learns to do on one input.

Such are blocks merged by a learned projection (the parallel blocks of the grafting paper, arXiv 2506.05340), and a block
that stands for a span of dropped ones beside it (as in Flux.1-lite).
"""

from __future__ import annotations

import dataclasses
import itertools
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
from graftax.surgery.edits import flat
from graftax.surgery.parse import parse
from graftax.surgery.replace import Exchange
from graftax.surgery.replay import is_training
from graftax.surgery.restructure import ParallelPairs, healers
from graftax.surgery.select import Selector, Site, ranges

PROJECT = "project"


@dataclass(frozen=True)
class StepSite:
    """A step of a student's program that is trained as a whole: its blocks, and the projection where it has one.

    Attributes:
        step: of the program.
        span: the teacher's blocks whose work it does: it gets the first one's input and learns the last one's output.
    """

    step: Step
    span: tuple[int, ...]

    def __str__(self) -> str:
        return f"{'merges' if self.step.merge == PROJECT else 'spans'}[{ranges(self.span)}]"


@dataclass(frozen=True)
class StepGroup:
    """Steps of one shape whose blocks hold equal operators, in order of the program. Axis s counts them.

    Attributes:
        spec: of the student.
        step: one of them, its blocks numbered from 0.
        blocks: its blocks.
        sites: all of them.
    """

    spec: ModelSpec
    step: Step
    blocks: tuple[BlockSpec, ...]
    sites: tuple[StepSite, ...]

    input = "block/in"
    output = "block/out"
    ridge = 1e-2  # outputs of blocks that read one input are nearly collinear: a weaker one fits hardly better, trains worse

    @property
    def spans(self) -> tuple[tuple[int, ...], ...]:
        """The teacher's blocks for each step: it learns from the first one's input and the last one's output."""
        return tuple(site.span for site in self.sites)

    @property
    def merges(self) -> bool:
        """Whether the steps have a projection."""
        return self.step.merge == PROJECT

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
            local, scion["blocks"], as_state(x), context, merges=scion.get(MERGES), plan="unroll", capture=capture,
            dtype=config.dtype,
        )  # fmt: skip
        return alone(state), taps

    last_layer = MERGES

    def readout(self, scion: Params) -> Params:
        """The projection of a step. Raises `BadInput` where it has none."""
        if not self.merges:
            raise BadInput(f"calibration of {self.sites[0]}: a block that heals has no last layer, expected 0 batches")
        return scion[MERGES][self._own]

    def with_readout(self, scion: Params, layer: Params) -> Params:
        """The step's weights with another projection."""
        return {**scion, MERGES: {self._own: layer}}

    def weights(self, params: Params) -> list[Params]:
        """The weights of every step, its blocks numbered from 0: {"blocks": {"00", ...}, "merges": {"00_01"}}."""
        return [self._weights(params, site.step.blocks) for site in self.sites]

    def _weights(self, params: Params, ids: tuple[int, ...]) -> Params:
        blocks = {f"{j:02d}": params["blocks"][self.spec.block_key(i)] for j, i in enumerate(ids)}
        return {"blocks": blocks, **({MERGES: {self._own: params[MERGES][self.spec.merge_key(ids)]}} if self.merges else {})}

    def install(self, params: Params, scions: Iterable[Params]) -> Params:
        """`params` with the weights of every step in their places; inverse of `weights`."""
        blocks, merges = dict(params["blocks"]), dict(params.get(MERGES, {}))
        for site, scion in zip(self.sites, scions, strict=True):
            ids = site.step.blocks
            blocks |= {self.spec.block_key(i): scion["blocks"][f"{j:02d}"] for j, i in enumerate(ids)}
            merges |= {self.spec.merge_key(ids): scion[MERGES][self._own]} if self.merges else {}
        return {**params, "blocks": blocks, **({MERGES: merges} if merges else {})}

    @property
    def _own(self) -> str:
        """Key of the projection among a step's own weights."""
        return "_".join(f"{j:02d}" for j in self.step.blocks)


def merged_steps(spec: ModelSpec) -> tuple[StepSite, ...]:
    """The steps of `spec` that have a projection. Raises `BadInput` where one is looped or scaled or two share a block."""
    steps = [step for step in spec.program if step.merge == PROJECT]
    if odd := [step for step in steps if step != Step(step.blocks, PROJECT)]:
        raise BadInput(f"distillation: {odd[0]} is looped or scaled, expected merged steps that run once")
    blocks = [i for step in steps for i in step.blocks]
    if shared := [i for i in blocks if blocks.count(i) > 1]:
        raise BadInput(f"distillation: block {shared[0]} runs in two merged steps, expected one, which then trains it")
    return tuple(StepSite(step, step.blocks) for step in steps)


def healing_steps(student: Model) -> tuple[StepSite, ...]:
    """The blocks that are to stand for spans that `drop(.., heal=..)` took out since the student's last training.

    Raises `BadInput` where operators or steps were exchanged beside: the teacher has them under other numbers.
    """
    texts = list(itertools.takewhile(lambda text: not is_training(text), reversed(student.meta.edits)))
    if not any("heal=" in text for text in texts):  # an edit of one's own need not read back
        return ()
    edits = [edit for text in reversed(texts) for edit in flat(parse(text))]
    heals = healers(edits, student.spec.depth)
    if heals and (others := [edit for edit in edits if isinstance(edit, Exchange | ParallelPairs)]):
        raise BadInput(f"distillation: {others[0]} beside drop(.., heal=..), expected one distilled before the other")
    return tuple(StepSite(Step((block,)), span) for block, span in sorted(heals.items()))


def taken_out(units: Iterable[Site | StepSite]) -> int:
    """How many of the teacher's blocks the student of these units does not have any more."""
    return sum(len(unit.span) - len(unit.step.blocks) for unit in units if isinstance(unit, StepSite))


def group_steps(spec: ModelSpec, sites: Iterable[StepSite]) -> dict[str, StepGroup]:
    """Groups of steps of a student of `spec`, under names that say what they are: "0_step_mha_mlp_mha_mlp"."""
    sites = list(sites)

    def local(site: StepSite) -> tuple[Step, tuple[BlockSpec, ...]]:
        ids = site.step.blocks
        return dataclasses.replace(site.step, blocks=tuple(range(len(ids)))), tuple(spec.blocks[i] for i in ids)

    return {
        f"{i}_step_{_kinds(blocks)}": StepGroup(spec, step, blocks, tuple(sites[k] for k in places))
        for i, ((step, blocks), places) in enumerate(members(map(local, sites)).items())
    }


def _kinds(blocks: Iterable[BlockSpec]) -> str:
    return "_".join(block[slot].kind for block in blocks for slot in block_kind(block.kind).tapped)


def has_units(student: Model) -> bool:
    """Whether stage 1 has anything to train."""
    return bool(healing_steps(student) or merged_steps(student.spec) or learnt_sites(student))


def regression_units(student: Model, sites: Selector | None) -> tuple[Site | StepSite, ...]:
    """What stage 1 trains: the selected sites; where `sites` is None the blocks that heal, and where there are none all
    merged steps and all scions outside of them.

    Raises `BadInput` where there are none.
    """
    if sites is None and (heals := healing_steps(student)):
        return heals
    steps = merged_steps(student.spec) if sites is None else ()
    if not steps:
        return scion_sites(student, sites)
    inside = {i for step in steps for i in step.step.blocks}
    return (*(site for site in learnt_sites(student) if site.block not in inside), *steps)
