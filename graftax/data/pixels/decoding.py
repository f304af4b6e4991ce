"""From a latent model's samples to pixels: which decoder goes with a model, and how it runs over many images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from graftax.checkpoint.hugging_face import PIPELINE
from graftax.checkpoint.shipped import is_shipped, is_there
from graftax.data.pixels import images as image_data
from graftax.data.source import GARMENTS
from graftax.data.text.vocabulary import reads_words
from graftax.errors import BadInput
from graftax.nets import autoencoder, small, vae
from graftax.nets.vae import VAESpec
from graftax.nets.vae_files import find_vae, load_vae, vae_spec
from graftax.progress import Progress
from graftax.spec import ModelSpec

Decode = Callable[[np.ndarray], np.ndarray]
"""From a model's arrays (n, h, w, c) to pixels in [-1, 1]."""

WHOLE_UP_TO = 128
"""Side of the latents up to which a VAE decodes them at once: 1024 pixels take about 4 GB; larger ones go in tiles."""

PER_CALL = 8
"""Images that a VAE decodes in one compiled call."""


def decoder_for(spec: ModelSpec, latents: str, model: str = "") -> Decode | None:
    """How samples become pixels, by a name as in `resolve`; None where there is no way.

    Raises `BadInput` where decoder and model do not fit.
    """
    name = resolve(spec, latents, model)
    if name is None or name == "none":
        return None if name is None else image_data.decoder(name)
    if not is_shipped(name, "autoencoder") and (folder := find_vae(name)):
        return _vae_decoder(folder, spec)
    shape = spec.image_shape
    if (found := small.load_autoencoder(name)[0].latent_shape) != shape:
        raise BadInput(f"latents {name!r}: the autoencoder has {found}, the model {shape}")
    return image_data.decoder(name)


def resolve(spec: ModelSpec, latents: str, model: str = "") -> str | None:
    """`latents` itself: "none", "demo", "scenes", an autoencoder's or a VAE's folder. For "auto" the one that fits, None
    without one.

    Pixel models need none, a model read from a diffusers pipeline (the folder `model`) has its VAE there, and where the
    shapes are those of the demo's latents it is the demo's autoencoder, for models of words that of scenes.
    """
    if latents != "auto":
        return latents
    if spec.option("channels") in (1, 3):
        return "none"
    if model and (folder := find_vae(Path(model) / "vae")):
        return str(folder)
    if model and (Path(model) / PIPELINE).is_file():
        return None  # its VAE is missing
    name = "scenes" if reads_words(spec) else "demo"
    fits = is_there(name, "autoencoder") and spec.image_shape == small.load_autoencoder(name)[0].latent_shape
    return name if fits else None


def pixels_per_side(spec: ModelSpec, latents: str, model: str = "") -> int | None:
    """How many pixels the side of one of the model's numbers is, decoded as in `decoder_for`; None where there is no way."""
    name = resolve(spec, latents, model)
    if name is None or name == "none":
        return None if name is None else 1
    if not is_shipped(name, "autoencoder") and (folder := find_vae(name)):
        return vae_spec(folder, vae_like(spec)).factor
    return autoencoder.FACTOR


def class_names(spec: ModelSpec, latents: str, classes: Sequence[int]) -> list[str]:
    """What `classes` are called: the demo's by the garments they are, others by their numbers."""
    garments = resolve(spec, latents) == "demo" and spec.classes == len(GARMENTS)
    return [GARMENTS[i] if garments else str(i) for i in classes]


def vae_like(spec: ModelSpec) -> VAESpec | None:
    """The VAE that a model's family was trained with, None where there are several: what files of VAEs do not say."""
    return vae.FAMILIES.get(spec.backbone)


def _vae_decoder(folder: Path, model: ModelSpec) -> Decode:
    spec, params = load_vae(folder, vae_like(model))
    if spec.latent_channels != (channels := model.latent_channels):
        raise BadInput(f"latents {str(folder)!r}: the VAE has {spec.latent_channels} channels, the model {channels}")
    params = jax.tree.map(jnp.asarray, params)
    return lambda drawn: decode_all(spec, params, drawn[..., :channels])  # without features that are drawn with them


def decode_all(spec: VAESpec, params: vae.Params, latents: np.ndarray) -> np.ndarray:
    """Pixels (n, f h, f w, c) in [-1, 1] of latents (n, h, w, latent_channels) as models see them, a few at a time."""
    tiled = max(latents.shape[1:3]) > WHOLE_UP_TO
    size = 1 if tiled else min(PER_CALL, len(latents))
    run = vae.decode_tiled if tiled else vae.decode_compiled()
    padded = np.resize(latents, (-(-len(latents) // size) * size, *latents.shape[1:]))  # whole batches: one compilation
    parts = []
    with Progress(len(latents), "decode", unit="image", show=len(padded) > size) as progress:
        for i in range(0, len(padded), size):
            parts.append(np.clip(run(spec, params, padded[i : i + size]), -1, 1))
            progress.advance(min(size, len(latents) - i))
    return np.concatenate(parts)[: len(latents)]
