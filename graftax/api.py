"""The verbs of graftax as plain functions: load, save, export, graft, sample, text_encoder. Everything builds on these."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike, DTypeLike

from graftax.allocator import keep_pages
from graftax.diffusion import Sampling, SamplingFields, image_keys
from graftax.diffusion import initial_noise as first_noise
from graftax.draw import draw, refresh_steps, sampler_steps, sampling_for, settings_for, weak_of
from graftax.errors import BadInput, NonFinite, naming
from graftax.models.arguments import as_float_type, as_key, as_path
from graftax.models.int8 import INT8, quantised
from graftax.models.model import Meta, Model, all_known, check_inputs, given_conditions, null_conditions
from graftax.models.policy import Policy
from graftax.models.sizes import at_size
from graftax.spec import Option
from graftax.surgery import check, graft

if TYPE_CHECKING:
    from graftax.data.scenes.tokens import SceneWords
    from graftax.nets.text_encoder import TextEncoder, TextEncoders


def load(
    path: str | Path, layout: str | None = None, dtype: DTypeLike | None = None, mesh: Mesh | None = None,
    **overrides: Option,
) -> Model:  # fmt: skip
    """Read a model: a PyTorch `.pt`, a `.safetensors`, a graftax checkpoint folder, a diffusers folder, such a one at the
    Hugging Face Hub ("hf://ORG/NAME", extra `hub`, see `graftax.checkpoint.hub`), or what graftax brings: "demo", a small
    DiT, and "scenes", a small PixArt.

    PyTorch-layout files may be flat state dicts or training checkpoints (EMA weights preferred); the structure, grafted
    operators included, is recognised from the tensors. `layout` names the format (`graftax.checkpoint.LAYOUTS`) where the
    file alone cannot tell. `overrides` give what tensors cannot tell: `num_heads=4`, `window=4`. A folder of diffusers'
    DiTTransformer2DModel, or of its pipeline, is computed as DiT is unless told `compat="diffusers"`: that code deviates.

    `dtype`: of the parameters; None is float32, but the type that they are stored in where they would take more than
    `graftax.checkpoint.LARGE` bytes in float32. With a `mesh` (`graftax.train.MeshConfig().build()`) every device gets its
    shards of each weight and no more, read from the mapped file. Nothing in the file is executed. Raises `BadInput` naming
    what is missing, extra, mis-shaped or hostile.

    dtype "int8": for sampling, with the kernels of the blocks in eight bits (`graftax.models.int8.quantised`).
    """
    return place(read(path, layout, **overrides), dtype, mesh)


def read(path: str | Path, layout: str | None = None, **overrides: Option) -> Model:
    """`load` without its last step: parameters are numpy arrays, views of the file in the types that it stores, and `Joined`
    where a leaf is several tensors. No device is used, so that what does not fit can be refused before any is."""
    from graftax.checkpoint import open_checkpoint  # reads safetensors: time that `import` saves
    from graftax.checkpoint.shipped import is_shipped, shipped_path

    spec, params, meta = open_checkpoint(shipped_path(path) if is_shipped(path) else as_path(path), layout, **overrides)
    check(spec, params)
    return Model(spec, params, Meta.from_dict(meta))


def place(model: Model, dtype: DTypeLike | None = None, mesh: Mesh | None = None) -> Model:
    """A model that was `read` with its parameters on the devices; `dtype` and `mesh` as in `load`."""
    if dtype == INT8:
        return quantised(place(model, None, mesh))
    keep_pages()
    from graftax.checkpoint import place_params
    from graftax.train.sharding import tree_shardings

    shardings = None if mesh is None else tree_shardings(model.params, mesh)
    return model.replace(params=place_params(model.params, dtype, shardings))


def text_encoder(
    folder: str | Path, max_length: int | None = None, dtype: DTypeLike | None = None, mesh: Mesh | None = None
) -> TextEncoder | TextEncoders | SceneWords:
    """Read a text encoder: transformers' folder of a T5 v1.1, a UMT5 or a CLIP, or a whole pipeline's of diffusers
    (PixArt-Σ, PixArt-α, Stable Diffusion 3, Flux, AuraFlow), or the closed vocabulary of a model of words: "scenes", or
    the model's own folder.

        encoder = graftax.text_encoder("PixArt-Sigma-XL-2-1024-MS", dtype="bfloat16")
        images = graftax.sample(model, cond=encoder(["a red heart"]), null_cond=encoder([""]))

    Weights are safetensors or `.bin` files, in shards or not; prompts are split by the `tokenizer.json` beside them or in a
    pipeline's `tokenizer/` (extra `text`), CLIP's also by `vocab.json` and `merges.txt`. Every prompt becomes `max_length`
    tokens (the T5's, where a pipeline has several encoders), None: as many as the pipeline says, 300 for a T5 by itself, 77
    for a CLIP. A pipeline of PixArt puts prompts in lower case; otherwise they are left as they are. Words become their
    numbers, 16 a prompt; what embeds them is in the model, so that there is nothing for `dtype` and `mesh` to do.

    What comes of prompts is what the pipeline's model takes: `text` and `text_mask` (PixArt), `text` (AuraFlow), `text` and
    `pooled` (Stable Diffusion 3, Flux). A Stable Diffusion 3 without `text_encoder_3` has zeros in place of its texts.

    `dtype` and `mesh` as in `load`. With bfloat16 weights the inputs of matrix products are bfloat16, while residuals, norms
    and softmax stay float32; other weights are used in float32. On a mesh `fsdp` splits the weights, and prompts are split
    where their number divides over it; all processes must ask for the same. Raises `BadInput` naming what is missing,
    extra, mis-shaped or hostile, `NonFinite` where weights exceed `dtype`.
    """
    keep_pages()
    from graftax.checkpoint.hub import fetched
    from graftax.data.text.vocabulary import find_words
    from graftax.nets.text_encoder import FOLDERS, TextEncoders, read_text_encoder

    as_float_type(dtype)
    there = fetched(as_path(folder), *FOLDERS)
    if (words := find_words(there)) is not None:
        if max_length is not None:
            raise BadInput(f"max_length: got {max_length!r}, expected none for the words of {folder}")
        return words
    encoder = read_text_encoder(as_path(folder), max_length)
    if isinstance(encoder, TextEncoders):
        return dataclasses.replace(encoder, parts=tuple(_placed(part, dtype, mesh) for part in encoder.parts))
    return _placed(encoder, dtype, mesh)


def _placed(encoder: TextEncoder, dtype: DTypeLike | None, mesh: Mesh | None) -> TextEncoder:
    """A text encoder that was read with its parameters on the devices."""
    from graftax.checkpoint import place_params
    from graftax.train.sharding import put_tree, token_sharding, tree_shardings

    if mesh is None:
        return dataclasses.replace(encoder, params=place_params(encoder.params, dtype))
    params = place_params(encoder.params, dtype, tree_shardings(encoder.params, mesh))
    return dataclasses.replace(
        encoder, params=params, place=lambda tokens: put_tree(tokens, token_sharding(tokens.shape, mesh))
    )


def save(model: Model, folder: str | Path, dtype: str = "float32") -> None:
    """Write a graftax checkpoint folder, atomically: spec, parameters, provenance. `load` reads it back."""
    from graftax.checkpoint import save_model

    check(model.spec, model.params)
    save_model(Path(as_path(folder)), model.spec, model.params, model.meta.to_dict(), dtype=dtype)


def export(model: Model, path: str | Path, layout: str | None = None) -> None:
    """Write a model in a foreign layout: `.safetensors` or `.pt` in PyTorch's, a path without suffix in diffusers'.

    `layout` names one of `graftax.checkpoint.LAYOUTS` where there are several. diffusers computes a DiT otherwise unless the
    model has compat "diffusers", for with it alone the outputs agree. Raises `BadInput` on other suffixes and on models that
    the layout cannot hold.
    """
    from graftax.checkpoint import export_model

    check(model.spec, model.params)
    export_model(Path(as_path(path)), model.spec, model.params, layout, model.meta.to_dict())


def export_lora(model: Model, path: str | Path, layout: str | None = None) -> None:
    """Write a model's adapters alone as a LoRA file, a `.safetensors`, which `lora_file` puts back on such a model.

    In diffusers' names (`transformer.LAYER.lora_A.weight`), or, where `layout` is the authors' of the family ("flux"), in
    kohya's (`lora_unet_LAYER.lora_down.weight`). Raises `BadInput` on models without adapters and on adapters on kernels
    that the layout does not have.
    """
    from graftax.checkpoint.lora_files import write_lora

    write_lora(Path(as_path(path)), model.spec, model.params, layout)


def sample(
    model: Model, labels: ArrayLike | None = None, *, cond: Mapping[str, ArrayLike] | None = None,
    null_cond: Mapping[str, ArrayLike] | None = None, sampling: Sampling | None = None, rng: jax.Array | None = None,
    initial_noise: ArrayLike | None = None, step_noise: ArrayLike | None = None, weak_model: Model | None = None,
    weak_policy: Policy | None = None, plan: str = "unroll", dtype: DTypeLike | None = None,
    **settings: Unpack[SamplingFields],
) -> jax.Array:  # fmt: skip
    """Draw images (latents, for a latent model): labels (b,) int -> (b, h, w, c) float32.

    How is said by `sampling`, or by fields of it as keywords (`sampler="ddim", steps=50`); what is left out is as the
    model's family draws images of this size, for a DiT as in `Sampling`, a flow by "euler", EDM's by "edm_heun". All steps
    run as one compiled loop. Samplers of flows and EDM's draw from models of noise as well, exactly
    (`graftax.models.prediction`). `cond` gives the conditions of models that take others than classes, `null_cond` their
    unconditional twin for guidance, of each image or one for all (None: the backbone's own). With weak="model" guidance
    leads away from `weak_model`, with "policy" from the model itself under `weak_policy` (`graftax.models.policy`).

    Image i has noise of its own, which depends on `rng` and i alone (`graftax.diffusion.image_keys`); `rng` may also be
    keys (b,), one for each image. `initial_noise` (b, h, w, c) and `step_noise` (steps, b, h, w, c), step 0 the noisiest,
    take its place; to a model that takes images of any size it says which. Raises `BadInput` on labels, shapes or settings
    that do not fit, `NonFinite` where an image is not finite.
    """
    spec, start = model.spec, None if initial_noise is None else jnp.asarray(initial_noise)
    sampling = sampling_for(spec if start is None or start.ndim != 4 else at_size(spec, start), sampling, **settings)
    given = given_conditions(labels, cond)
    count = len(next(iter(given.values())))
    key = jax.random.key(0) if rng is None else as_key(rng)
    if key.shape not in ((), (count,)):
        raise BadInput(f"rng: shape {key.shape}, expected one key, or one for each of {count} images")
    keys = image_keys(key, 0, count) if key.ndim == 0 else key
    x = first_noise(keys, sampling.steps, spec.image_shape) if start is None else start
    if x.shape[:1] != (count,):
        raise BadInput(f"initial_noise: shape {x.shape}, expected noise of {count} images")
    from graftax.train.sharding import mesh_of  # time that `import` saves

    with naming("initial_noise") if x.shape[1:] != spec.image_shape else nullcontext():
        check_inputs(spec, x, jnp.zeros(count), given)
    null = None if null_cond is None else null_conditions(given, null_cond)
    if null is not None:
        with naming("null_cond"):
            check_inputs(spec, x, jnp.zeros(count), null)
    noise = None if step_noise is None else jnp.asarray(step_noise)
    weak = weak_of(model, sampling, weak_model, weak_policy)
    if weak is not None:
        with naming("weak_model"):
            check_inputs(weak.spec, x, jnp.zeros(count), given)
    options = {"sampling": sampling, "plan": plan, "dtype": as_float_type(dtype)}
    away = {} if weak is None else {f"weak_{name}": value for name, value in weak._asdict().items()}
    images = draw(spec, model.params, x, given, null, keys, noise, mesh=mesh_of((x, given, model.params)), **away, **options)
    if not all_known(images, jnp.isfinite):
        raise NonFinite(f"sample: images are not finite, expected finite weights and a weaker guidance than {sampling}")
    return images


__all__ = [
    "draw", "export", "export_lora", "graft", "load", "place", "read", "refresh_steps", "sample", "sampler_steps",
    "sampling_for", "save", "settings_for", "text_encoder",
]  # fmt: skip
