"""Training from scratch: one function per kind of network, one driver for all."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from graftax.checkpoint import save_model
from graftax.checkpoint.paths import work_path, write_text
from graftax.cli import config as configs
from graftax.cli.experiments.preview import Evaluate, Params, with_preview
from graftax.cli.pixels import images as image_data
from graftax.cli.pixels import nets
from graftax.cli.pixels.images import Images
from graftax.cli.schema import AutoencoderTraining, ClassifierTraining, Denoising, DiTTraining, Training
from graftax.diffusion import Process
from graftax.errors import BadInput
from graftax.evaluate import classifier
from graftax.models import autoencoder, dit
from graftax.models.collect import spread
from graftax.models.cost import train_flops
from graftax.spec import ModelSpec
from graftax.train import MeshConfig, diffusion_loss, fit, heldout_loss, train_job, training_tree
from graftax.train.overview import parameter_table, write_parameters
from graftax.train.record import read_metrics
from graftax.train.sharding import to_host
from graftax.train.step import LossFn


@dataclass(frozen=True)
class Task:
    """What is particular to one kind of network: its weights, its loss, its score, how it is saved."""

    spec_json: str
    init: Callable[[jax.Array], Params]
    loss: LossFn
    evaluate: Evaluate | None
    save: Callable[[Path, Params, dict[str, Any]], None]
    flops_per_image: float = 0.0


def train(config: Training) -> None:
    """Train as `config` says; leaves model, record.json, metrics.jsonl and checkpoints in its workdir."""
    folder = Path(config.workdir)
    config.check_mesh(config.mesh, jax.device_count())
    data = image_data.load(config.data)
    task = TASKS[type(config)](config, data)
    key = jax.random.fold_in(jax.random.key(config.loop.seed), 0x1417)  # apart from the keys of the steps
    job = train_job(
        lambda: task.init(key), task.loss, config.optimiser, ema_decay=config.ema_decay, frozen=config.frozen,
        mesh=config.mesh.build(), metadata={"task": config.task, "spec": json.loads(task.spec_json)},
        evaluate=task.evaluate, label=f"train {config.task}", flops_per_image=task.flops_per_image,
        rules=config.mesh.rules, accumulate=config.accumulate,
    )  # fmt: skip
    write_parameters(folder, parameter_table(jax.eval_shape(task.init, key), None, config.frozen))
    state = fit(job, data.batches(config.batch_size, config.loop.seed), config.loop, folder)
    record = make_record(config, folder)
    task.save(folder / "model", to_host(state.ema_params), record)
    if jax.process_index() == 0:
        write_text(work_path(folder) / "record.json", json.dumps(record, indent=1) + "\n")
    print(f"{config.task}: {folder / 'model'}; held out: {record['held_out']}")


def make_record(config: Training, folder: Path) -> dict[str, Any]:
    """The training record, JSON types: config, amount of work, machine, curve, last held-out numbers."""
    lines = read_metrics(folder)
    batch = config.batch_size
    trained = [line for line in lines if line["split"] == "train"]
    held_out = [{k: v for k, v in line.items() if k != "split"} for line in lines if line["split"] == "eval"]
    steps = [line["step"] for line in trained]
    # From the rates, not from this process's clock: a run may have been continued several times.
    seconds = sum((b - a) * batch / line["images_per_s"] for a, b, line in zip([0, *steps], steps, trained, strict=False))
    return {
        "config": configs.as_tree(config),
        "steps": config.loop.steps,
        "images_seen": config.loop.steps * batch,
        "training_seconds": round(seconds),
        "machine": {"cpus": os.cpu_count(), "platform": platform.machine(), "device": jax.devices()[0].device_kind},
        "held_out": held_out[-1] if held_out else {},
        "curve": {"train": [[line["step"], round(line["loss"], 5)] for line in trained], "held_out": held_out},
    }


def _dit(config: Training, data: Images) -> Task:
    assert isinstance(config, DiTTraining)
    spec = config.model.spec()
    config.mesh.check_heads(spec.num_heads)
    loss, evaluate = denoising(config, spec, data, config.mesh)
    evaluate = with_preview(evaluate, config.preview, spec, data)

    def save(folder: Path, params: Params, record: dict[str, Any]) -> None:
        params = spread(spec, params)
        save_model(folder, spec, params, {"source": f"graftax train, {record['steps']} steps on {config.data.source}"})

    return Task(
        spec.to_json(), lambda key: training_tree(spec, dit.init(spec, key), config.frozen), loss, evaluate, save,
        train_flops(spec),
    )  # fmt: skip


def _autoencoder(config: Training, data: Images) -> Task:
    assert isinstance(config, AutoencoderTraining)
    spec = config.model
    _check_pixels(config, data, spec.image_shape)

    def evaluate(params: Params) -> dict[str, float]:
        # The decoder is judged on the latents it will see: encoded and standardised as after training.
        params = autoencoder.with_latent_stats(spec, params, data.test)
        latents = nets.in_chunks(autoencoder.encode, spec, params, data.test, spec.latent_shape)
        decoded = nets.in_chunks(autoencoder.decode, spec, params, latents, spec.image_shape)
        return {"psnr": float(autoencoder.psnr(jnp.square(decoded - data.test).mean()))}

    def save(folder: Path, params: Params, record: dict[str, Any]) -> None:
        params = autoencoder.with_latent_stats(spec, params, data.train)
        nets.save("autoencoder", folder, spec.to_json(), params, _meta(record))

    loss = autoencoder.autoencoder_loss(spec)
    return Task(spec.to_json(), lambda key: autoencoder.init(spec, key), loss, evaluate if data.held_out else None, save)


def _classifier(config: Training, data: Images) -> Task:
    assert isinstance(config, ClassifierTraining)
    spec = config.model
    _check_pixels(config, data, spec.image_shape)
    if data.num_classes > spec.num_classes:
        raise BadInput(f"data: {data.num_classes} classes, but the classifier has {spec.num_classes}")

    def evaluate(params: Params) -> dict[str, float]:
        return {"accuracy": classifier.accuracy(spec, params, data.test, data.test_labels)}

    def save(folder: Path, params: Params, record: dict[str, Any]) -> None:
        nets.save("classifier", folder, spec.to_json(), params, _meta(record))

    loss = classifier.classifier_loss(spec)
    return Task(spec.to_json(), lambda key: classifier.init(spec, key), loss, evaluate if data.held_out else None, save)


def denoising(
    config: Denoising, spec: ModelSpec, data: Images, mesh: MeshConfig | None = None
) -> tuple[LossFn, Evaluate | None]:
    """The diffusion loss for `fit`, and its held-out form where there is held-out data; `mesh`: where parameters will be."""
    image_data.check_fit(data, spec)
    process, dtype = Process(), jnp.dtype(config.compute_dtype)
    loss = diffusion_loss(
        spec, process, class_dropout=config.class_dropout, dtype=dtype, plan=config.plan, remat=config.remat
    )
    if not data.held_out:
        return loss, None
    laid_out = {"mesh": mesh.build(), "rules": mesh.rules} if mesh else {}
    return loss, heldout_loss(spec, process, data.test, data.test_labels, dtype=dtype, plan=config.plan, **laid_out)


def _check_pixels(config: Training, data: Images, shape: tuple[int, ...]) -> None:
    if config.data.latents != "none":
        raise BadInput(f"config.data.latents: got {config.data.latents!r}, expected 'none': this network sees pixels")
    if data.shape != shape:
        raise BadInput(f"data: images are {data.shape}, the network takes {shape}")


def _meta(record: dict[str, Any]) -> dict[str, Any]:
    return {"data": record["config"]["data"]["source"], "steps": record["steps"], "held_out": record["held_out"]}


TASKS: dict[type[Training], Callable[[Training, Images], Task]] = {
    DiTTraining: _dit,
    AutoencoderTraining: _autoencoder,
    ClassifierTraining: _classifier,
}
