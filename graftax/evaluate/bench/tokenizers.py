"""What autoencoders cost beside the diffusion model of their latents: counted, nothing is timed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from graftax.backbones.dit.relatives.variants import repa_of_f16
from graftax.backbones.dit.variants import variant
from graftax.checkpoint import open_checkpoint
from graftax.checkpoint.shipped import shipped_path
from graftax.evaluate.bench.rows import Rows
from graftax.models.cost import flops, train_flops
from graftax.nets import autoencoder, small, vae
from graftax.nets.vae import SD, VA_VAE, VAESpec
from graftax.nets.vae_cost import autoencoder_flops, decode_flops, encode_flops
from graftax.spec import ModelSpec

PIXELS = 256
GIGA = 2e9
"""FLOPs in a billion multiply-adds."""


@dataclass(frozen=True)
class Tokenizer:
    """An autoencoder and the model of its latents.

    Attributes:
        name: its name.
        costs: FLOPs of encoder and decoder on one image, as published.
        model: that is trained on its latents.
        called: the model's name.
        run: of both as they run here.
        counted: the same by XLA's count, which leaves out products with padding.
    """

    name: str
    costs: tuple[int, int]
    model: ModelSpec
    called: str
    run: int
    counted: Callable[[], tuple[float, float]]


def bench_tokenizers() -> Rows:
    """Stable Diffusion's VAE, VA-VAE (256 pixels) and the demo's autoencoder, an image each, in multiply-adds (GMAC).

    Columns: tokenizer, encode_gmac, decode_gmac, gmac of both, run_gmac (as they run here), xla_gmac (XLA's count of that),
    model, forwards (both over a forward pass of the model), cached_saves_percent: what a training step of the model from
    pixels is spared where latents are cached, encode / (3 forward + encode).
    """
    return [_row(one) for one in tokenizers()]


def tokenizers() -> list[Tokenizer]:
    """The autoencoders of the table."""
    spec, _ = small.load_autoencoder("demo")
    demo = open_checkpoint(shipped_path("demo"))[0]
    small_one = autoencoder_flops(spec)
    return [
        _of_vae("SD-VAE", SD, variant("DiT-XL/2"), "DiT-XL/2"),
        _of_vae("VA-VAE", VA_VAE, repa_of_f16(), "SiT-XL/1"),
        Tokenizer("demo", small_one, demo, "demo", sum(small_one), functools.partial(count_autoencoder, spec)),
    ]


def _of_vae(name: str, spec: VAESpec, model: ModelSpec, called: str) -> Tokenizer:
    encode, decode = encode_flops(spec, PIXELS), decode_flops(spec, PIXELS, published=True)
    run = encode + decode_flops(spec, PIXELS)
    return Tokenizer(name, (encode, decode), model, called, run, functools.partial(count_vae, spec))


def count_vae(spec: VAESpec = SD, pixels: int = PIXELS) -> tuple[float, float]:
    """XLA's count of encoder and decoder on one image, of convolutions as accelerators run them (on CPUs see
    `graftax.nets.winograd`)."""
    params = jax.eval_shape(functools.partial(vae.init, spec), jax.random.key(0))
    side = pixels // spec.factor
    encode, decode = functools.partial(vae.encode_moments, spec), functools.partial(vae.decode, spec)
    return (
        _counted(encode, params, (pixels, pixels, spec.in_channels)),
        _counted(decode, params, (side, side, spec.latent_channels)),
    )


def count_autoencoder(spec: autoencoder.AutoencoderSpec) -> tuple[float, float]:
    """Likewise of the demo's."""
    params = jax.eval_shape(functools.partial(autoencoder.init, spec), jax.random.key(0))
    encode, decode = functools.partial(autoencoder.encode, spec), functools.partial(autoencoder.decode, spec)
    return _counted(encode, params, spec.image_shape), _counted(decode, params, spec.latent_shape)


def _counted(function: Callable[..., jax.Array], params: Any, shape: tuple[int, int, int]) -> float:
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    analysis: Any = jax.jit(function).trace(params, x).lower(lowering_platforms=("tpu",)).cost_analysis()
    return analysis["flops"]


def _row(one: Tokenizer) -> dict[str, Any]:
    encode, decode = one.costs
    return {
        "tokenizer": one.name, "encode_gmac": encode / GIGA, "decode_gmac": decode / GIGA, "gmac": (encode + decode) / GIGA,
        "run_gmac": one.run / GIGA, "xla_gmac": sum(one.counted()) / GIGA,
        "model": one.called, "forwards": (encode + decode) / flops(one.model),
        "cached_saves_percent": 100 * encode / (train_flops(one.model) + encode),
    }  # fmt: skip
