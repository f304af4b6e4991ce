"""Whole models trained from Python: `finetune`, stage 2 of a graft, and `train`, from scratch.

student, history = graftax.train.finetune(student, (latents, labels), DiffusionConfig(loop=LoopConfig(1000)))
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from graftax.checkpoint.files import sha256_of_arrays
from graftax.checkpoint.lock import holding
from graftax.checkpoint.paths import work_path
from graftax.data.feed import as_batch, as_batches
from graftax.diffusion import Noising
from graftax.errors import BadInput
from graftax.models import Meta, Model, init, param_shapes
from graftax.models.cost import train_flops
from graftax.ops.base import Params
from graftax.progress import say
from graftax.spec import ModelSpec
from graftax.surgery import check_trainable
from graftax.surgery.select import select
from graftax.train.config import DiffusionConfig
from graftax.train.diffusion_task import configured_loss, heldout_loss, model_tree, training_tree
from graftax.train.loop import Batches, History, fit_recorded
from graftax.train.noising import noising_for
from graftax.train.overview import parameter_table, write_parameters
from graftax.train.recipes import Recipe
from graftax.train.recipes.base import HEADS
from graftax.train.sharding import RULES, AxisRules, to_host
from graftax.train.state import create_state
from graftax.train.step import train_job

Watch = Callable[[Model], Mapping[str, Any]]
"""From the averaged model to more numbers, and images (h, w, c) uint8, for the record of an evaluation."""

HALF = 0.5
"""Share of the first weights in the averaged ones above which a training says so."""

FRESH = 0x1417
"""Stream of the run's key that draws the first weights, apart from the keys of the steps."""


def finetune(
    student: Model, data: Any, config: DiffusionConfig, workdir: str | os.PathLike[str] | None = None,
    heldout: Mapping[str, Any] | None = None, *, process: Noising | None = None, mesh: Mesh | None = None,
    rules: AxisRules = RULES, watch: Watch | None = None, on_record: Callable[[dict[str, Any]], None] | None = None,
    show: bool = True,
) -> tuple[Model, History]:  # fmt: skip
    """Stage 2: train the whole model with the diffusion objective, as `config` says.

    `data`: arrays, an iterable of batches or a grain dataset (`graftax.data.feed.as_batches`): image (b, h, w, c), what the
    model sees, and label (b,); for a model of texts text (b, m, c) and text_mask (b, m) instead. Returns the student with
    averaged weights, and the records of the run as `graftax.train.loop.fit` writes them. With a `workdir` the run leaves
    checkpoints and metrics there, and the same call resumes it. `heldout` (the same of n images) is evaluated when the loop
    says so, `watch` with it. With a `mesh` the state is laid out by `rules`.

    Raises what `fit` raises, and BadInput where data, model and config do not fit together.
    """
    check_trainable("student", student.params)
    batches = _batches(data, config, student.spec)
    table = table_of_finetuning(student, config)
    metadata = {"spec": student.spec.to_json(), "start": sha256_of_arrays(student.params)}
    params, history = _run(
        student.spec, lambda: student.params, table, metadata, "stage 2", batches, config, workdir, heldout, process=process,
        mesh=mesh, rules=rules, watch=watch, on_record=on_record, show=show,
    )  # fmt: skip
    meta = student.meta.after(f"finetune(steps={config.loop.steps})", history, "loss")
    return student.replace(params=params, meta=meta), history


def train(
    spec: ModelSpec, data: Any, config: DiffusionConfig, workdir: str | os.PathLike[str] | None = None,
    heldout: Mapping[str, Any] | None = None, *, process: Noising | None = None, mesh: Mesh | None = None,
    rules: AxisRules = RULES, watch: Watch | None = None, on_record: Callable[[dict[str, Any]], None] | None = None,
    show: bool = True,
) -> tuple[Model, History]:  # fmt: skip
    """Train a model of `spec` from scratch, its first weights drawn from `config.loop.seed`. The rest as in `finetune`."""
    batches = _batches(data, config, spec)
    key = jax.random.fold_in(jax.random.key(config.loop.seed), FRESH)
    table = table_of_training(spec, config)
    params, history = _run(
        spec, lambda: init(spec, key), table, {"spec": spec.to_json()}, "train", batches, config, workdir, heldout,
        process=process, mesh=mesh, rules=rules, watch=watch, on_record=on_record, show=show,
    )  # fmt: skip
    return Model(spec, params, Meta().after(f"train(steps={config.loop.steps})", history, "loss")), history


def latest_weights(model: Model, config: DiffusionConfig, workdir: str | os.PathLike[str]) -> Model:
    """`model` with the weights of its training in `workdir` as they are at the newest checkpoint: not averaged.

    `model` and `config` as they went into `finetune` or came out of it; optimiser and frozen leaves must be the run's.
    Raises `BadInput` where there is no checkpoint, or one of another model.
    """
    from graftax.checkpoint.manager import Checkpoints  # late, as in `graftax.train.loop`

    frozen = config.frozen_in(model.spec)
    like = jax.eval_shape(lambda: create_state(_tree(model.spec, model.params, config), config.optimiser.build(), frozen))
    folder = work_path(workdir) / "checkpoints"
    if folder.exists():  # to look for checkpoints makes a folder for them
        with holding(workdir), closing(Checkpoints(folder)) as store:
            if (step := store.latest()) is not None:
                state, _, _ = store.restore(step, like)
                return model.replace(params=jax.tree.map(jnp.asarray, model_tree(model.spec, to_host(state.params))))
    raise BadInput(f"{workdir}: no checkpoint in it, expected the work folder of a training")


def _run(
    spec: ModelSpec, start: Callable[[], Params], table: str, metadata: Mapping[str, Any], label: str, batches: Batches,
    config: DiffusionConfig, workdir: str | os.PathLike[str] | None, heldout: Mapping[str, Any] | None, *,
    process: Noising | None, mesh: Mesh | None, rules: AxisRules, watch: Watch | None,
    on_record: Callable[[dict[str, Any]], None] | None, show: bool,
) -> tuple[Params, History]:  # fmt: skip
    """The averaged parameters after training, plain, and the records. `table`: what is trained, for people."""
    process, dtype, frozen = noising_for(spec, process), jnp.dtype(config.compute_dtype), config.frozen_in(spec)
    loss = configured_loss(spec, config, process)
    besides = {"recipe": str(loss.recipe)} if loss.recipe else {}
    errors = None
    if heldout is not None:
        errors = heldout_loss(spec, process, as_batch(heldout, spec), dtype=dtype, plan=config.plan, mesh=mesh, rules=rules)

    def evaluate(params: Params) -> dict[str, Any]:
        found: dict[str, Any] = dict(errors(params)) if errors else {}
        return {**found, **watch(Model(spec, model_tree(spec, params)))} if watch else found

    job = train_job(
        lambda: _tree(spec, start(), config), loss, config.optimiser, ema_decay=config.ema_decay,
        ema_warmup=config.ema_warmup, frozen=frozen, mesh=mesh,
        metadata={**metadata, "process": dataclasses.asdict(process), **besides},
        evaluate=evaluate if errors or watch else None, label=label, rules=rules, accumulate=config.accumulate,
        flops_per_image=loss.recipe.passes * train_flops(spec, loss.recipe.policy),
    )  # fmt: skip
    if show and config.first_share > HALF:
        say(
            f"note: ema_decay {config.ema_decay} over {config.loop.steps} steps: the averaged weights, the result, hold "
            f"{config.first_share:.0%} of the first ones; a smaller ema_decay or ema_warmup=true follows sooner"
        )
    with holding(workdir, folder=True):
        if workdir:
            write_parameters(workdir, table)
        state, history = fit_recorded(job, batches, config.loop, workdir, on_record=on_record, show=show)
    averaged = model_tree(spec, to_host(state.ema_params))
    return jax.tree.map(jnp.asarray, averaged), history


def _batches(data: Any, config: DiffusionConfig, spec: ModelSpec) -> Batches:
    also = tuple(Recipe.parse(config.recipe).arrays(spec))
    return as_batches(data, config.batch_size, config.loop.seed, spec, also)


def _tree(spec: ModelSpec, params: Params, config: DiffusionConfig) -> Params:
    return training_tree(spec, params, config.frozen_in(spec), Recipe.parse(config.recipe), config.loop.seed)


def table_of_finetuning(student: Model, config: DiffusionConfig) -> str:
    """All parameters of stage 2, heads of its losses too, and what becomes of each."""
    sites = select(student.meta.sites, student.spec) if student.meta.sites else ()
    new = [*(site.path(student.spec) for site in sites), HEADS]
    return parameter_table({**student.params, **_heads(student.spec, config)}, new, config.frozen_in(student.spec))


def table_of_training(spec: ModelSpec, config: DiffusionConfig) -> str:
    """Likewise of a training from scratch."""
    return parameter_table({**param_shapes(spec), **_heads(spec, config)}, None, config.frozen_in(spec))


def _heads(spec: ModelSpec, config: DiffusionConfig) -> Params:
    """Shapes of the heads that a training has beside the model's parameters."""
    recipe = Recipe.parse(config.recipe)
    return jax.eval_shape(lambda: recipe.heads(spec, jax.random.key(0)))
