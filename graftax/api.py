"""The verbs of graftax as plain functions: load, save, export, graft, sample. Everything else builds on these."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from graftax.diffusion import Process, Sampler, guided, unit_noise
from graftax.diffusion import sample as denoise
from graftax.errors import BadInput
from graftax.models.dit import forward_prepared, prepare_params
from graftax.models.model import Meta, Model
from graftax.models.stack import Params
from graftax.spec import ModelSpec
from graftax.surgery import check, graft


def load(path: str | Path, *, compat: str | None = None, **overrides: int) -> Model:
    """Read a model: a PyTorch `.pt`, a `.safetensors`, a graftax checkpoint folder, a diffusers folder, or "demo", the
    small DiT that graftax brings.

    PyTorch-layout files may be flat state dicts or training checkpoints (EMA weights preferred); the structure, grafted
    operators included, is recognised from the tensors. `overrides` give what tensors cannot tell: `num_heads=4`,
    `window=4`. A folder of diffusers' DiTTransformer2DModel, or of its pipeline, is computed as DiT is unless `compat` is
    "diffusers": that code deviates (`ModelSpec`). Nothing in the file is executed. Raises `BadInput` naming what is
    missing, extra, mis-shaped or hostile.
    """
    from graftax.checkpoint import open_checkpoint  # reads orbax and safetensors: half a second that `import` saves
    from graftax.checkpoint.files import demo_path

    spec, params, meta = open_checkpoint(demo_path("dit") if path == "demo" else path, compat=compat, **overrides)
    check(spec, params)
    return Model(spec, jax.tree.map(jnp.asarray, params), Meta.from_dict(meta))


def save(model: Model, folder: str | Path, dtype: str = "float32") -> None:
    """Write a graftax checkpoint folder, atomically: spec, parameters, provenance. `load` reads it back."""
    from graftax.checkpoint import save_model

    save_model(Path(folder), model.spec, model.params, model.meta.to_dict(), dtype=dtype)


def export(model: Model, file: str | Path) -> None:
    """Write `.safetensors` or `.pt` in the PyTorch DiT layout, as the reference code reads it.

    A path without suffix becomes a folder that Hugging Face diffusers reads; the model must have compat "diffusers", for
    with it alone the outputs agree. Raises `BadInput` on other suffixes and on models that the layout cannot hold.
    """
    from graftax.checkpoint import export_diffusers, export_torch

    write = export_torch if Path(file).suffix else export_diffusers
    write(Path(file), model.spec, model.params)


def sample(
    model: Model, labels: ArrayLike, *, sampler: Sampler = "ddpm", steps: int = 250, cfg_scale: float = 1.5,
    cfg_channels: int | None = 3, eta: float = 0.0, rng: jax.Array | None = None,
    initial_noise: ArrayLike | None = None, step_noise: ArrayLike | None = None, plan: str = "unroll",
    dtype: DTypeLike | None = None,
) -> jax.Array:  # fmt: skip
    """Draw images (latents, for a latent model): labels (b,) int -> (b, h, w, c) float32.

    All steps run as one compiled loop. `initial_noise` (b, h, w, c) and `step_noise` (steps, b, h, w, c), step 0 the
    noisiest, make runs of different models comparable; what is not given is drawn from `rng`, one key, or (b,) keys, one per
    image, so that an image does not depend on its batch. Guidance acts on the first `cfg_channels` channels (None: all),
    as DiT does. Raises `BadInput` on labels, shapes or settings that do not fit.
    """
    labels = jnp.asarray(labels)
    _check_labels(model.spec, labels)
    key = jax.random.key(0) if rng is None else rng
    shape = (labels.shape[0], model.spec.input_size, model.spec.input_size, model.spec.in_channels)
    if key.shape not in ((), labels.shape):
        raise BadInput(f"rng: shape {key.shape}, expected one key, or one for each of {labels.shape[0]} labels")
    x = unit_noise(key, steps, shape) if initial_noise is None else jnp.asarray(initial_noise)
    if x.shape != shape:
        raise BadInput(f"initial_noise: shape {x.shape}, expected {shape}")
    noise = None if step_noise is None else jnp.asarray(step_noise)
    return _sample(
        model.spec, model.params, x, labels, key, noise, process=Process().respaced(steps), sampler=sampler,
        cfg_scale=float(cfg_scale), cfg_channels=cfg_channels, eta=eta, plan=plan, dtype=dtype,
    )  # fmt: skip


def _check_labels(spec: ModelSpec, labels: jax.Array) -> None:
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise BadInput(f"labels: shape {labels.shape} {labels.dtype}, expected (b,) integers")
    if labels.size == 0 or int(labels.min()) < 0 or int(labels.max()) > spec.num_classes:
        raise BadInput(f"labels: {labels.tolist()[:8]}, expected at least one, within 0..{spec.num_classes}")


@functools.partial(
    jax.jit, static_argnames=("spec", "process", "sampler", "cfg_scale", "cfg_channels", "eta", "plan", "dtype")
)
def _sample(
    spec: ModelSpec, params: Params, x: jax.Array, labels: jax.Array, key: jax.Array, step_noise: jax.Array | None, *,
    process: Process, sampler: Sampler, cfg_scale: float, cfg_channels: int | None, eta: float, plan: str,
    dtype: DTypeLike | None,
) -> jax.Array:  # fmt: skip
    prepared = prepare_params(spec, params, plan)

    def model_fn(x: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
        return forward_prepared(spec, prepared, x, t, y, plan=plan, dtype=dtype)[0]

    guide = guided(model_fn, cfg_scale, spec.num_classes, cfg_channels)
    return denoise(guide, process, x, labels, key, sampler, eta, step_noise)


__all__ = ["export", "graft", "load", "sample", "save"]
