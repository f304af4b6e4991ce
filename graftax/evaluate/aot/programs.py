"""The compiled steps of an experiment, traced from shapes alone: the very functions that training and sampling run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from graftax.api import draw, settings_for
from graftax.diffusion import Sampling
from graftax.distill import DistillConfig, create_state, make_distill_step
from graftax.distill.cost import stage1_flops
from graftax.distill.groups import group_units
from graftax.distill.placing import stacked_shardings
from graftax.distill.steps import StepSite
from graftax.distill.teacher import Teacher
from graftax.models import param_shapes
from graftax.models.backbone import find
from graftax.models.cost import flops, train_flops
from graftax.spec import ModelSpec
from graftax.surgery.select import Site
from graftax.train import DiffusionConfig, TrainState, make_step, training_tree
from graftax.train.diffusion_task import configured_loss
from graftax.train.noising import noising_for
from graftax.train.sharding import AxisRules, batch_sharding, replicated, tree_shardings
from graftax.train.state import create_state as create_train_state


@dataclass(frozen=True)
class Program:
    """One compiled step of a run.

    Attributes:
        name: what a run calls it.
        images: how many a call takes, over all chips.
        flops: model FLOPs of a call (`graftax.models.cost`).
        trace: (mesh, rules) -> the step traced on shapes that lie on the mesh as a run's arrays do.
        pieces: in how many it takes the images.
    """

    name: str
    images: int
    flops: int
    trace: Callable[[Mesh, AxisRules], jax.stages.Traced]
    pieces: int = 1


def stage1_program(
    teacher: ModelSpec, student: ModelSpec, units: Sequence[Site | StepSite], config: DistillConfig, batch_size: int
) -> Program:
    """One update of all scions (`graftax.distill.distill_job`)."""
    process = noising_for(teacher)
    source = Teacher(teacher, group_units(student, units), process, config)

    def trace(mesh: Mesh, rules: AxisRules) -> jax.stages.Traced:
        prepared = jax.eval_shape(source.prepare, param_shapes(teacher))
        state = jax.eval_shape(lambda params: create_state(student, params, units, config), param_shapes(student))
        state = _on(state, stacked_shardings(state, mesh, rules))
        prepared = _on(prepared, tree_shardings(prepared, mesh, rules))
        step = make_distill_step(teacher, student, units, process, config, mesh=mesh, rules=rules)
        return step.trace(state, prepared, _batch(teacher, batch_size, mesh), _key(mesh))

    return Program("stage 1", batch_size, batch_size * stage1_flops(teacher, student, units), trace)


def train_program(name: str, spec: ModelSpec, config: DiffusionConfig) -> Program:
    """One update of the whole model as `config` says (`graftax.train.train_job`): stage 2, or training from scratch."""
    frozen, loss = config.frozen_in(spec), configured_loss(spec, config)

    def initial(params: Any) -> TrainState:
        tree = training_tree(spec, params, frozen, loss.recipe)
        return create_train_state(tree, config.optimiser.build(), frozen)

    def trace(mesh: Mesh, rules: AxisRules) -> jax.stages.Traced:
        state = jax.eval_shape(initial, param_shapes(spec))
        state = _on(state, tree_shardings(state, mesh, rules))
        step = make_step(
            loss, config.optimiser, ema_decay=config.ema_decay, ema_warmup=config.ema_warmup, mesh=mesh, rules=rules,
            accumulate=config.accumulate,
        )  # fmt: skip
        batch = _batch(spec, config.batch_size, mesh, loss.recipe.arrays(spec))
        return step.trace(state, batch, _key(mesh))

    flops = config.batch_size * loss.recipe.passes * train_flops(spec, loss.recipe.policy)
    return Program(name, config.batch_size, flops, trace, config.accumulate)


def sample_program(
    spec: ModelSpec, batch_size: int, sampling: Sampling | None = None, *, plan: str = "unroll",
    dtype: DTypeLike | None = None, loaded: DTypeLike | None = None,
) -> Program:  # fmt: skip
    """`graftax.sample` of a batch spread over the chips, with a key for every image.

    Weights of the type `loaded` are split over the chips as `graftax.load` splits them; None: float32, all on each chip.
    `sampling` None: as the model's family draws; what it leaves open, as DiT and the grafting paper score (DDPM, 250 steps).
    """
    chosen = sampling or Sampling(**{"sampler": "ddpm", "steps": 250, **settings_for(spec)})

    def trace(mesh: Mesh, rules: AxisRules) -> jax.stages.Traced:
        noise = jax.ShapeDtypeStruct((batch_size, *spec.image_shape), jnp.float32)
        cond = jax.eval_shape(lambda: dict(find(spec).example(spec, batch_size)))
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size))
        noise, cond, keys = _split((noise, cond, keys), mesh)
        params = _whole(param_shapes(spec), mesh) if loaded is None else _loaded(spec, loaded, mesh, rules)
        null = None if spec.classes else cond  # the encoded empty prompt comes from outside
        return draw.trace(spec, params, noise, cond, null, keys, None, sampling=chosen, plan=plan, dtype=dtype, mesh=mesh)

    passes = chosen.steps if chosen.cfg_scale == 1 else 2 * chosen.steps
    return Program("sampling", batch_size, batch_size * passes * flops(spec), trace)


def _batch(spec: ModelSpec, size: int, mesh: Mesh, also: Mapping[str, jax.ShapeDtypeStruct] | None = None) -> Any:
    """Shapes of images (b, h, w, c) and of labels (b,), or what else such a model sees, split over the batch; of further
    arrays those of one image are given."""
    image = jax.ShapeDtypeStruct((size, *spec.image_shape), jnp.float32)
    label = {"label": jax.ShapeDtypeStruct((size,), jnp.int32)}
    beside = label if spec.classes else jax.eval_shape(lambda: dict(find(spec).example(spec, size)))
    more = {name: jax.ShapeDtypeStruct((size, *one.shape), one.dtype) for name, one in (also or {}).items()}
    return _split({"image": image, **beside, **more}, mesh)


def _split(tree: Any, mesh: Mesh) -> Any:
    """Shapes of arrays (b, ...) split over the batch."""
    return _on(tree, jax.tree.map(lambda _: batch_sharding(mesh), tree))


def _whole(tree: Any, mesh: Mesh) -> Any:
    """Shapes of what every device holds."""
    return _on(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def _loaded(spec: ModelSpec, dtype: DTypeLike, mesh: Mesh, rules: AxisRules) -> Any:
    """Shapes of weights as `graftax.load` puts them on a mesh."""
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), param_shapes(spec))
    return _on(params, tree_shardings(params, mesh, rules))


def _key(mesh: Mesh) -> Any:
    return _whole(jax.eval_shape(lambda: jax.random.key(0)), mesh)


def _on(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, shardings)
