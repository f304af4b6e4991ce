"""Training from scratch as config files say it: a model of some family, or one of the small networks of the demos."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp

from graftax import config as configs
from graftax.backbones.ddt.config import DDTConfig
from graftax.backbones.dit.config import DiTConfig
from graftax.backbones.flux.config import FluxConfig
from graftax.backbones.lightningdit.config import LightningDiTConfig
from graftax.backbones.maskdit.config import MaskDiTConfig
from graftax.backbones.pixart.config import PixArtConfig
from graftax.checkpoint import save_model
from graftax.checkpoint.paths import work_path, write_text
from graftax.data.config import DataConfig
from graftax.data.pixels import images as image_data
from graftax.data.pixels.images import Images
from graftax.errors import BadInput, did_you_mean
from graftax.evaluate.preview import preview
from graftax.nets import autoencoder, classifier, small
from graftax.nets.autoencoder import AutoencoderSpec
from graftax.nets.classifier import ClassifierSpec
from graftax.nets.convolving import compile_options
from graftax.ops.base import Params
from graftax.spec import ModelSpec
from graftax.study import relations
from graftax.study.dry_run import DryRun, dry_job, dry_train
from graftax.study.relations import RelationsTraining
from graftax.study.run_folder import machine
from graftax.study.stages import heldout_of
from graftax.train import DiffusionConfig, MeshConfig, TrainConfig, fit, train, train_job
from graftax.train.finetune import FRESH
from graftax.train.loop import Job
from graftax.train.overview import parameter_table, write_parameters
from graftax.train.record import read_metrics
from graftax.train.sharding import to_host
from graftax.train.step import LossFn


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What every training from scratch has.

    Attributes:
        task: which of `TASKS` this is.
        workdir: folder of its results.
        data: what it learns from.
        mesh: devices.
    """

    task: str
    workdir: str
    data: DataConfig = field(default_factory=DataConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)


@dataclass(frozen=True, kw_only=True)
class DiTPretraining(Pretraining):
    """A class-conditional DiT.

    Attributes:
        model: its sizes.
        training: how it is trained.
    """

    model: DiTConfig
    training: DiffusionConfig


@dataclass(frozen=True, kw_only=True)
class LightningDiTPretraining(Pretraining):
    """A LightningDiT.

    Attributes:
        model: its sizes.
        training: how it is trained.
    """

    model: LightningDiTConfig
    training: DiffusionConfig


@dataclass(frozen=True, kw_only=True)
class DDTPretraining(Pretraining):
    """A DDT.

    Attributes:
        model: its sizes.
        training: how it is trained.
    """

    model: DDTConfig
    training: DiffusionConfig


@dataclass(frozen=True, kw_only=True)
class MaskDiTPretraining(Pretraining):
    """A MaskDiT.

    Attributes:
        model: its sizes.
        training: how it is trained.
    """

    model: MaskDiTConfig
    training: DiffusionConfig


@dataclass(frozen=True, kw_only=True)
class PixArtPretraining(Pretraining):
    """A PixArt, which draws what a text says.

    Attributes:
        model: its sizes.
        training: how it is trained.
    """

    model: PixArtConfig
    training: DiffusionConfig


@dataclass(frozen=True, kw_only=True)
class FluxPretraining(Pretraining):
    """A Flux, which draws what a text says.

    Attributes:
        model: its sizes.
        training: how it is trained.
    """

    model: FluxConfig
    training: DiffusionConfig


@dataclass(frozen=True, kw_only=True)
class AutoencoderPretraining(Pretraining):
    """The small autoencoder that gives latents.

    Attributes:
        model: its sizes.
        training: how it is trained.
    """

    training: TrainConfig
    model: AutoencoderSpec = field(default_factory=AutoencoderSpec)


@dataclass(frozen=True, kw_only=True)
class ClassifierPretraining(Pretraining):
    """The small classifier that scores samples.

    Attributes:
        model: its sizes.
        training: how it is trained.
    """

    training: TrainConfig
    model: ClassifierSpec = field(default_factory=ClassifierSpec)


TASKS: dict[str, type[Any]] = {
    "dit": DiTPretraining, "lightningdit": LightningDiTPretraining, "ddt": DDTPretraining,
    "maskdit": MaskDiTPretraining, "pixart": PixArtPretraining, "flux": FluxPretraining,
    "autoencoder": AutoencoderPretraining, "classifier": ClassifierPretraining, "relations": RelationsTraining,
}  # fmt: skip


ModelPretraining = (
    DiTPretraining | LightningDiTPretraining | DDTPretraining | MaskDiTPretraining | PixArtPretraining | FluxPretraining
)  # fmt: skip
MODELS = get_args(ModelPretraining)
"""Those of diffusion models."""


def pretraining_of(tree: dict[str, Any]) -> Any:
    """The training that a config file's fields describe. Raises `BadInput`, naming the key."""
    task = configs.convert(str, tree.get("task"), "config.task")
    if task not in TASKS:
        raise BadInput(f"config.task: got {task!r}, expected one of {tuple(TASKS)}{did_you_mean(task, TASKS)}")
    return configs.build(TASKS[task], tree)


def run(config: Any) -> dict[str, Any]:
    """Train as `config` says; leaves model, record.json, metrics.jsonl and checkpoints in its workdir. Returns what
    record.json holds."""
    if isinstance(config, RelationsTraining):
        return relations.run(config)
    folder = Path(config.workdir)
    config.training.check_mesh(config.mesh, jax.device_count())
    data = image_data.load(config.data)
    if isinstance(config, MODELS):
        _model(config, data, folder)
    else:
        _small(config, data, folder)
    record = make_record(config, folder)
    if jax.process_index() == 0:
        write_text(work_path(folder) / "record.json", json.dumps(record, indent=1) + "\n")
    return record


def dry_run(config: Any) -> list[DryRun]:
    """What `run` would do, without doing it: each training of the task. Raises `BadInput` as it does."""
    if isinstance(config, RelationsTraining):
        return relations.dry_run(config)
    config.training.check_mesh(config.mesh, jax.device_count())
    data, stage = image_data.load(config.data), config.training
    if isinstance(config, MODELS):
        return [dry_train(_vetted(config, data), stage, data, config.mesh)]
    _, job = _net_and_job(config, data)
    shapes = {"image": ((stage.batch_size, *data.shape), jnp.float32), "label": ((stage.batch_size,), jnp.int32)}
    batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}
    return [dry_job(job, stage.loop.steps, batch, data, config.mesh, stage.frozen)]


def make_record(config: Any, folder: Path) -> dict[str, Any]:
    """The training record, JSON types: config, amount of work, machine, curve, last held-out numbers."""
    lines = read_metrics(folder)
    batch = config.training.batch_size
    trained = [line for line in lines if line["split"] == "train"]
    held_out = [{k: v for k, v in line.items() if k != "split"} for line in lines if line["split"] == "eval"]
    steps = [line["step"] for line in trained]
    # From the rates, not from this process's clock: a run may have been continued several times.
    seconds = sum((b - a) * batch / line["images_per_s"] for a, b, line in zip([0, *steps], steps, trained, strict=False))
    return {
        "config": configs.as_tree(config),
        "steps": config.training.loop.steps,
        "images_seen": config.training.loop.steps * batch,
        "training_seconds": round(seconds),
        "machine": machine(),
        "held_out": held_out[-1] if held_out else {},
        "curve": {"train": [[line["step"], round(line["loss"], 5)] for line in trained], "held_out": held_out},
    }


def _model(config: ModelPretraining, data: Images, folder: Path) -> None:
    spec, stage = _vetted(config, data), config.training
    model, _ = train(
        spec, data.batches(stage.batch_size, stage.loop.seed), stage, folder, heldout_of(data), mesh=config.mesh.build(),
        rules=config.mesh.rules, watch=preview(stage.preview, spec, data),
    )  # fmt: skip
    source = f"graftax train, {stage.loop.steps} steps on {config.data.source}"
    save_model(folder / "model", spec, model.params, {**model.meta.to_dict(), "source": source, "data": [data.described]})


def _vetted(config: ModelPretraining, data: Images) -> ModelSpec:
    """What is trained. Raises `BadInput` where mesh or data do not fit it."""
    spec = config.model.spec()
    config.mesh.check_heads(spec.sizes.heads)
    image_data.check_fit(data, spec)
    return spec


@dataclass(frozen=True)
class Net:
    """What is particular to one kind of small network.

    Attributes:
        kind: its name.
        spec_json: what it is.
        init: key -> weights.
        loss: as `graftax.train.step` takes it.
        evaluate: weights -> held-out numbers.
        finish: trained weights -> those to keep.
    """

    kind: str
    spec_json: str
    init: Callable[[jax.Array], Params]
    loss: LossFn
    evaluate: Callable[[Params], Mapping[str, Any]]
    finish: Callable[[Params], Params] = lambda params: params


def _net_and_job(config: Any, data: Images) -> tuple[Net, Job[Any]]:
    net = _autoencoder(config, data) if isinstance(config, AutoencoderPretraining) else _classifier(config, data)
    stage, key = config.training, _first_key(config)
    job = train_job(
        lambda: net.init(key), net.loss, stage.optimiser, ema_decay=stage.ema_decay,
        ema_warmup=stage.ema_warmup, frozen=stage.frozen, mesh=config.mesh.build(),
        metadata={"task": config.task, "spec": json.loads(net.spec_json)},
        evaluate=net.evaluate if data.held_out else None, label=f"train {config.task}", rules=config.mesh.rules,
        accumulate=stage.accumulate, compiler=compile_options(),
    )  # fmt: skip
    return net, job


def _first_key(config: Any) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.training.loop.seed), FRESH)


def _small(config: Any, data: Images, folder: Path) -> None:
    (net, job), stage = _net_and_job(config, data), config.training
    write_parameters(folder, parameter_table(jax.eval_shape(net.init, _first_key(config)), None, stage.frozen))
    state = fit(job, data.batches(stage.batch_size, stage.loop.seed), stage.loop, folder)
    params, record = net.finish(to_host(state.ema_params)), make_record(config, folder)
    meta = {"data": config.data.source, "steps": record["steps"], "held_out": record["held_out"]}
    small.save(net.kind, folder / "model", net.spec_json, params, meta)


def _autoencoder(config: AutoencoderPretraining, data: Images) -> Net:
    spec = config.model
    _check_pixels(config, data, spec.image_shape)

    def evaluate(params: Params) -> dict[str, float]:
        # The decoder is judged on the latents it will see: encoded and standardised as after training.
        params = autoencoder.with_latent_stats(spec, params, data.test)
        latents = small.in_chunks(autoencoder.encode, spec, params, data.test, spec.latent_shape)
        decoded = small.in_chunks(autoencoder.decode, spec, params, latents, spec.image_shape)
        return {"psnr": float(autoencoder.psnr(jnp.square(decoded - data.test).mean()))}

    return Net(
        "autoencoder", spec.to_json(), lambda key: autoencoder.init(spec, key), autoencoder.autoencoder_loss(spec), evaluate,
        lambda params: autoencoder.with_latent_stats(spec, params, data.train),
    )  # fmt: skip


def _classifier(config: ClassifierPretraining, data: Images) -> Net:
    spec = config.model
    _check_pixels(config, data, spec.image_shape)
    if data.num_classes > spec.num_classes:
        raise BadInput(f"data: {data.num_classes} classes, but the classifier has {spec.num_classes}")
    return Net(
        "classifier", spec.to_json(), lambda key: classifier.init(spec, key), classifier.classifier_loss(spec),
        lambda params: {"accuracy": classifier.accuracy(spec, params, data.test, data.test_labels)},
    )  # fmt: skip


def _check_pixels(config: Pretraining, data: Images, shape: tuple[int, ...]) -> None:
    if config.data.latents != "none":
        raise BadInput(f"config.data.latents: got {config.data.latents!r}, expected 'none': this network sees pixels")
    if data.shape != shape:
        raise BadInput(f"data: images are {data.shape}, the network takes {shape}")
