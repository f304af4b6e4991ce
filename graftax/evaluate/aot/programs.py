"""The compiled steps of an experiment, traced from shapes alone: the very functions that training and sampling run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from graftax import api
from graftax.diffusion import Process, Sampler
from graftax.distill import DistillConfig, create_state, make_distill_step
from graftax.distill.cost import stage1_flops
from graftax.distill.groups import group_units
from graftax.distill.layout import stacked_shardings
from graftax.distill.steps import MergedStep
from graftax.distill.teacher import Teacher
from graftax.models import param_shapes
from graftax.models.cost import flops, train_flops
from graftax.spec import ModelSpec
from graftax.surgery.select import Site
from graftax.train import OptimiserConfig, diffusion_loss, make_step, training_tree
from graftax.train import state as train_state
from graftax.train.sharding import AxisRules, batch_sharding, replicated, tree_shardings


@dataclass(frozen=True)
class Program:
    """One compiled step of a run.

    `images`: how many a call takes, over all chips. `flops`: model FLOPs of a call (`graftax.models.cost`). `trace(mesh,
    rules)`: the step traced on shapes that lie on the mesh as a run's arrays do. `pieces`: in how many it takes the images.
    """

    name: str
    images: int
    flops: int
    trace: Callable[[Mesh, AxisRules], jax.stages.Traced]
    pieces: int = 1


def stage1_program(
    teacher: ModelSpec, student: ModelSpec, units: Sequence[Site | MergedStep], config: DistillConfig, batch_size: int
) -> Program:
    """One update of all scions (`graftax.distill.distill_job`)."""
    process = Process()
    source = Teacher(teacher, group_units(student, units), process, config)

    def trace(mesh: Mesh, rules: AxisRules) -> jax.stages.Traced:
        prepared = jax.eval_shape(source.prepare, param_shapes(teacher))
        state = jax.eval_shape(lambda params: create_state(student, params, units, config), param_shapes(student))
        state, prepared = (
            _on(state, stacked_shardings(state, mesh, rules)),
            _on(prepared, tree_shardings(prepared, mesh, rules)),
        )
        step = make_distill_step(teacher, student, units, process, config, mesh=mesh, rules=rules)
        return jax.jit(step, donate_argnums=0).trace(state, prepared, _batch(teacher, batch_size, mesh), _key(mesh))

    return Program("stage 1", batch_size, batch_size * stage1_flops(teacher, student, units), trace)


def train_program(
    name: str, spec: ModelSpec, optimiser: OptimiserConfig, batch_size: int, *, ema_decay: float = 0.9999,
    frozen: Sequence[str] = (), class_dropout: float = 0.1, dtype: DTypeLike | None = None, plan: str = "auto",
    remat: str = "none", accumulate: int = 1,
) -> Program:  # fmt: skip
    """One update of the whole model (`graftax.train.train_job`): stage 2, or training from scratch."""
    loss = diffusion_loss(spec, Process(), class_dropout=class_dropout, dtype=dtype, plan=plan, remat=remat)

    def initial(params: Any) -> train_state.TrainState:
        return train_state.create_state(training_tree(spec, params, frozen), optimiser.build(), frozen)

    def trace(mesh: Mesh, rules: AxisRules) -> jax.stages.Traced:
        state = jax.eval_shape(initial, param_shapes(spec))
        state = _on(state, tree_shardings(state, mesh, rules))
        step = make_step(loss, optimiser, ema_decay=ema_decay, mesh=mesh, rules=rules, accumulate=accumulate)
        return jax.jit(step, donate_argnums=0).trace(state, _batch(spec, batch_size, mesh), _key(mesh))

    return Program(name, batch_size, batch_size * train_flops(spec), trace, accumulate)


def sample_program(
    spec: ModelSpec, batch_size: int, *, sampler: Sampler = "ddpm", steps: int = 250, cfg_scale: float = 1.5,
    cfg_channels: int | None = 3, eta: float = 0.0, plan: str = "unroll", dtype: DTypeLike | None = None,
) -> Program:  # fmt: skip
    """`graftax.sample` of a batch spread over the chips, with the weights on each of them and a key for every image."""

    def trace(mesh: Mesh, rules: AxisRules) -> jax.stages.Traced:
        batch = _batch(spec, batch_size, mesh)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size))
        keys = _on(keys, batch_sharding(mesh))
        return api._sample.trace(
            spec, _whole(param_shapes(spec), mesh), batch["image"], batch["label"], keys, None,
            process=Process().respaced(steps), sampler=sampler, cfg_scale=cfg_scale, cfg_channels=cfg_channels, eta=eta,
            plan=plan, dtype=dtype,
        )  # fmt: skip

    passes = steps if cfg_scale == 1 else 2 * steps
    return Program("sampling", batch_size, batch_size * passes * flops(spec), trace)


def _whole(tree: Any, mesh: Mesh) -> Any:
    """Shapes of what every device holds."""
    return _on(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def _key(mesh: Mesh) -> Any:
    return _whole(jax.eval_shape(lambda: jax.random.key(0)), mesh)


def _batch(spec: ModelSpec, size: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of images (b, h, w, c) and labels (b,), split over the batch."""
    image = jax.ShapeDtypeStruct((size, spec.input_size, spec.input_size, spec.in_channels), jnp.float32)
    batch = {"image": image, "label": jax.ShapeDtypeStruct((size,), jnp.int32)}
    return _on(batch, jax.tree.map(lambda _: batch_sharding(mesh), batch))


def _on(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, shardings)
