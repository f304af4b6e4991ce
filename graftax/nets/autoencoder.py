"""A small convolutional autoencoder that gives the demo its latent space: (b, 32, 32, 1) pixels <-> (b, 8, 8, 4) latents.

Resolution changes only by space-to-depth and back, which on every device is a reshape; the convolutions are 3x3 at 16x16
and 8x8. There is no posterior to sample. Instead the latents are standardised per channel and `noise` of their standard
deviation is added to them while training, which bounds the information they carry (a Gaussian channel of signal-to-noise
ratio 1 / noise**2) and makes the decoder deaf to errors of that size, such as those of a diffusion model.

Parameters: {"encoder", "decoder", "latent_stats": {"mean" (c,), "std" (c,)}}. The statistics are not trained; they are
measured once after training by `with_latent_stats`, and `encode` and `decode` use them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from graftax.errors import BadInput
from graftax.nets.convolving import compile_options

Params = dict[str, Any]
Batch = Mapping[str, Any]  # name -> (b, ...) array
Metrics = dict[str, jax.Array]  # name -> () float32
FACTOR = 4  # pixels per latent along each axis: two space-to-depth steps of 2


@dataclass(frozen=True)
class AutoencoderSpec:
    """Sizes of the autoencoder and its training noise. Raises `BadInput` on sizes that cannot be.

    Attributes:
        image_size: side of the images.
        image_channels: of the images.
        latent_channels: of the latents.
        width: channels at 8x8, half of it at 16x16.
        res_blocks: residual blocks at 8x8 in each half.
        noise: standard deviation of the noise on the standardised latents while training.
    """

    image_size: int = 32
    image_channels: int = 1
    latent_channels: int = 4
    width: int = 64
    res_blocks: int = 1
    noise: float = 0.1

    def __post_init__(self) -> None:
        for name in ("image_size", "image_channels", "latent_channels", "width", "res_blocks"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadInput(f"AutoencoderSpec.{name}: got {value!r}, expected a positive integer")
        if self.image_size % FACTOR or self.width % 2:
            raise BadInput(
                f"AutoencoderSpec: image_size {self.image_size}, width {self.width}; expected multiples of {FACTOR} and 2"
            )
        if not 0 <= self.noise < 1:
            raise BadInput(f"AutoencoderSpec.noise: got {self.noise!r}, expected a number in [0, 1)")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (h, w, c) of one image's latents."""
        side = self.image_size // FACTOR
        return side, side, self.latent_channels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (h, w, c) of one image."""
        return self.image_size, self.image_size, self.image_channels

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back to an equal spec."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> AutoencoderSpec:
        """Inverse of `to_json`. Raises `BadInput` on anything else."""
        try:
            return cls(**json.loads(text))
        except (TypeError, json.JSONDecodeError) as error:
            raise BadInput(f"autoencoder spec: {error} in {text[:80]!r}, expected AutoencoderSpec fields") from None


def space_to_depth(x: jax.Array) -> jax.Array:
    """(b, 2h, 2w, c) -> (b, h, w, 4c): every 2x2 block of pixels becomes one pixel's channels."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)  # (b, h, w, 2, 2, c)
    return x.reshape(b, h // 2, w // 2, 4 * c)


def depth_to_space(x: jax.Array) -> jax.Array:
    """(b, h, w, 4c) -> (b, 2h, 2w, c): the inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)  # (b, h, 2, w, 2, c)
    return x.reshape(b, 2 * h, 2 * w, c // 4)


def _conv(features: int, **options: Any) -> nn.Conv:
    return nn.Conv(features, (3, 3), **options)


class ResBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), the second convolution starting at zero. Shape (b, h, w, c) is kept."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = _conv(x.shape[-1])(nn.silu(x))
        return x + _conv(x.shape[-1], kernel_init=nn.initializers.zeros)(nn.silu(y))


class Encoder(nn.Module):
    """(b, 4s, 4s, image_channels) -> raw latents (b, s, s, latent_channels), not yet standardised.

    Attributes:
        spec: sizes.
    """

    spec: AutoencoderSpec

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.silu(_conv(self.spec.width // 2)(space_to_depth(x)))  # (b, 2s, 2s, width / 2)
        x = _conv(self.spec.width)(space_to_depth(x))  # (b, s, s, width)
        for _ in range(self.spec.res_blocks):
            x = ResBlock()(x)
        return nn.Dense(self.spec.latent_channels)(nn.silu(x))


class Decoder(nn.Module):
    """Standardised latents (b, s, s, latent_channels) -> images (b, 4s, 4s, image_channels), about [-1, 1].

    Attributes:
        spec: sizes.
    """

    spec: AutoencoderSpec

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = _conv(self.spec.width)(z)
        for _ in range(self.spec.res_blocks):
            x = ResBlock()(x)
        x = nn.Dense(2 * self.spec.width)(nn.silu(x))
        x = depth_to_space(x)  # (b, 2s, 2s, width / 2)
        x = _conv(self.spec.width // 2)(nn.silu(x))
        return depth_to_space(_conv(4 * self.spec.image_channels)(nn.silu(x)))


def init(spec: AutoencoderSpec, key: jax.Array) -> Params:
    """Fresh float32 parameters; the latent statistics start at mean 0, standard deviation 1."""
    encoder_key, decoder_key = jax.random.split(key)
    c = spec.latent_channels
    return {
        "encoder": Encoder(spec).init(encoder_key, jnp.zeros((1, *spec.image_shape)))["params"],
        "decoder": Decoder(spec).init(decoder_key, jnp.zeros((1, *spec.latent_shape)))["params"],
        "latent_stats": {"mean": jnp.zeros((c,)), "std": jnp.ones((c,))},
    }


def _check(name: str, array: jax.Array | np.ndarray, shape: tuple[int, int, int]) -> None:
    if array.ndim != 4 or array.shape[1:] != shape:
        raise BadInput(f"{name}: shape {tuple(array.shape)}, expected (b, {', '.join(map(str, shape))})")


def encode(spec: AutoencoderSpec, params: Params, images: jax.Array) -> jax.Array:
    """Latents (b, h/4, w/4, c), about zero mean and unit variance per channel, of images (b, h, w, c) in [-1, 1]."""
    _check("images to encode", images, spec.image_shape)
    stats = params["latent_stats"]
    return (_encode(spec, params, images) - stats["mean"]) / stats["std"]


def decode(spec: AutoencoderSpec, params: Params, latents: jax.Array) -> jax.Array:
    """Images (b, h, w, c), clipped to [-1, 1], of latents (b, h/4, w/4, c) as `encode` gives them."""
    _check("latents to decode", latents, spec.latent_shape)
    return jnp.clip(_decode(spec, params, latents), -1.0, 1.0)


def _encode(spec: AutoencoderSpec, params: Params, images: jax.Array) -> jax.Array:
    return Encoder(spec).apply({"params": params["encoder"]}, images)  # pyright: ignore[reportReturnType]


def _decode(spec: AutoencoderSpec, params: Params, latents: jax.Array) -> jax.Array:
    return Decoder(spec).apply({"params": params["decoder"]}, latents)  # pyright: ignore[reportReturnType]


def _moments(raw: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation (c,) over all but the last axis."""
    axes = tuple(range(raw.ndim - 1))
    return raw.mean(axes), raw.std(axes) + 1e-6


def autoencoder_loss(spec: AutoencoderSpec) -> Callable[[Params, Batch, jax.Array], tuple[jax.Array, Metrics]]:
    """Loss function (params, batch, key) -> (loss, metrics): mean absolute plus mean squared error of the images.

    Latents are standardised with the batch's own statistics before the noise of `spec.noise` is added, so the encoder
    cannot drown the noise by growing. `batch["image"]` is (b, h, w, c) in [-1, 1]. Metrics: "l1" and "psnr" in dB.
    """

    def loss(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        _, error, metrics = reconstructed(spec, params, batch["image"], key)
        return error, metrics

    return loss


def reconstructed(
    spec: AutoencoderSpec, params: Params, images: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, Metrics]:
    """Raw latents (b, h/4, w/4, c) of images (b, h, w, c), `autoencoder_loss` of these, and its metrics."""
    raw = _encode(spec, params, images)
    mean, std = _moments(raw)
    latents = (raw - mean) / std
    latents = latents + spec.noise * jax.random.normal(key, latents.shape)
    error = _decode(spec, params, latents) - images
    l1, l2 = jnp.abs(error).mean(), jnp.square(error).mean()
    return raw, l1 + l2, {"l1": l1, "psnr": psnr(l2)}


def psnr(mean_squared_error: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB for images in [-1, 1], whose peak-to-peak range is 2."""
    return 10 * jnp.log10(4.0 / mean_squared_error)


def with_latent_stats(spec: AutoencoderSpec, params: Params, images: np.ndarray, batch_size: int = 500) -> Params:
    """The same parameters with `latent_stats` measured over `images` (n, h, w, c) in [-1, 1]."""
    _check("images for latent statistics", images, spec.image_shape)
    run = jax.jit(lambda x: _encode(spec, params, x), compiler_options=compile_options())
    raw = np.concatenate([np.asarray(run(images[i : i + batch_size])) for i in range(0, len(images), batch_size)])
    mean, std = _moments(jnp.asarray(raw))
    return {**params, "latent_stats": {"mean": mean, "std": std}}
