"""The autoencoder of latent diffusion models (AutoencoderKL): pixels to a Gaussian posterior over latents, and back.

Parameters: {"encoder", "decoder", "quant_conv", "post_quant_conv"}, the last two where the spec has them. All functions are
pure; `encode_moments`, `sample_latents` and `decode` are to be jitted with `spec` static. Images are (b, h, w, c) in
[-1, 1], latents as diffusion models see them: shifted and scaled to about unit variance.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv 2112.10752); numerics are those
of diffusers' AutoencoderKL in float32.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax.errors import BadInput
from graftax.nets.convolving import compile_options
from graftax.nets.tiles import in_tiles
from graftax.nets.vae_blocks import Decoder, Encoder, conv1

Params = dict[str, Any]
PerChannel = float | tuple[float, ...]
"""A number for all channels of the latents, or one for each."""

LOGVAR_RANGE = (-30.0, 20.0)
"""Bounds of the posterior's log-variance, as it was trained."""


@dataclass(frozen=True)
class VAESpec:
    """Sizes of a VAE and the scale of its latents; fields are named as in the config.json of diffusers' AutoencoderKL, but
    for the last two, which its kinds of blocks say.

    Models see (raw latents - shift_factor) * scaling_factor. The defaults are Stable Diffusion's. Raises `BadInput` on sizes
    that cannot be.

    Attributes:
        in_channels: of the images that it encodes.
        out_channels: of those that it decodes.
        latent_channels: of the latents.
        block_out_channels: widths from full to lowest resolution.
        layers_per_block: the encoder's residual blocks at each width; the decoder has one more.
        norm_num_groups: groups of its normalisations.
        scaling_factor: of the latents that models see, for all channels or one for each, as VA-VAE's are 1 / deviation.
        shift_factor: of these, taken off first, likewise.
        use_quant_conv: whether a 1x1 convolution follows the encoder.
        use_post_quant_conv: whether one precedes the decoder.
        mid_block_add_attention: whether the middle attends over all pixels.
        down_attention: numbers of the widths, 0 at full resolution, at which attention follows each residual block of the
            encoder: those of diffusers' AttnDownEncoderBlock2D.
        up_attention: likewise of the decoder, numbered likewise: AttnUpDecoderBlock2D.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: PerChannel = 0.18215
    shift_factor: PerChannel = 0.0
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    down_attention: tuple[int, ...] = ()
    up_attention: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        widths = self.block_out_channels
        if not widths:
            raise BadInput("VAESpec.block_out_channels: got none, expected at least one width")
        sizes = ("in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups")
        counts = {name: getattr(self, name) for name in sizes} | {
            f"block_out_channels[{i}]": w for i, w in enumerate(widths)
        }
        for name, value in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadInput(f"VAESpec.{name}: got {value!r}, expected a positive integer")
        if any(width % self.norm_num_groups for width in widths):
            raise BadInput(
                f"VAESpec.block_out_channels: {widths}, expected multiples of norm_num_groups {self.norm_num_groups}"
            )
        for name in ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
            if not isinstance(getattr(self, name), bool):
                raise BadInput(f"VAESpec.{name}: got {getattr(self, name)!r}, expected true or false")
        for name in ("down_attention", "up_attention"):
            _check_numbered(name, getattr(self, name), len(widths))
        for name, least in (("scaling_factor", 0.0), ("shift_factor", -math.inf)):
            _check_numbers(name, getattr(self, name), self.latent_channels, least)

    @property
    def factor(self) -> int:
        """Pixels per latent along each axis."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def scaled(self) -> bool:
        """Whether models see anything but the raw latents."""
        return (self.scaling_factor, self.shift_factor) != (1.0, 0.0)

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back to an equal spec."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> VAESpec:
        """Inverse of `to_json`. Raises `BadInput` on anything else."""
        try:
            fields = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()}
            return cls(**{**fields, "block_out_channels": tuple(fields["block_out_channels"])})
        except (AttributeError, TypeError, KeyError, json.JSONDecodeError) as error:
            raise BadInput(f"VAE spec: {error!r} while reading {text[:80]!r}, expected VAESpec fields") from None


def _check_numbered(name: str, value: object, count: int) -> None:
    """Raise `BadInput` unless a field is some of the numbers below `count`, in their order."""
    if not isinstance(value, tuple) or list(value) != [i for i in range(count) if i in value]:
        raise BadInput(f"VAESpec.{name}: got {value!r}, expected numbers of widths, rising and below {count}")


def _check_numbers(name: str, value: object, channels: int, least: float) -> None:
    """Raise `BadInput` unless a field is a number above `least`, or as many of them as there are channels."""
    one = isinstance(value, int | float)
    numbers = (value,) if one else value if isinstance(value, tuple) and len(value) == channels else ()
    if not numbers or not all(isinstance(x, int | float) and math.isfinite(x) and x > least for x in numbers):
        expected = "a finite number" if least < 0 else "a positive number"
        raise BadInput(f"VAESpec.{name}: got {value!r}, expected {expected}, or {channels}, one for each channel")


SD = VAESpec()
"""sd-vae-ft-ema and -mse, Stable Diffusion 1 and 2."""

SDXL = dataclasses.replace(SD, scaling_factor=0.13025)
SD3 = dataclasses.replace(
    SD, latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
)
FLUX = dataclasses.replace(SD3, scaling_factor=0.3611, shift_factor=0.1159)

VA_VAE = dataclasses.replace(
    SD, latent_channels=32, block_out_channels=(128, 128, 256, 256, 512), scaling_factor=1.0, down_attention=(4,),
    up_attention=(4,),
)  # fmt: skip
"""LightningDiT's (Yao et al., arXiv 2501.01423). Its models see latents scaled by the statistics of each channel, which come
in a file of their own: here they are as they are."""

FAMILIES = {
    "dit": SD, "maskdit": SD, "sd": SD, "pixart-alpha": SD, "sdxl": SDXL, "pixart-sigma": SDXL, "auraflow": SDXL, "sd3": SD3,
    "flux": FLUX, "lightningdit": VA_VAE,
}  # fmt: skip
"""The VAE, with the scale and shift of its latents, that the models of each family were trained with."""


ALONE = 128 * 128
"""Pixels of an image from which it is encoded and decoded by itself on a CPU."""


def init(spec: VAESpec, key: jax.Array) -> Params:
    """Fresh float32 parameters."""
    keys = jax.random.split(key, 4)
    side, c = spec.factor, spec.latent_channels
    params: Params = {
        "encoder": _encoder(spec).init(keys[0], jnp.zeros((1, side, side, spec.in_channels)))["params"],
        "decoder": _decoder(spec).init(keys[1], jnp.zeros((1, 1, 1, c)))["params"],
    }
    if spec.use_quant_conv:
        params["quant_conv"] = conv1(2 * c).init(keys[2], jnp.zeros((1, 1, 1, 2 * c)))["params"]
    if spec.use_post_quant_conv:
        params["post_quant_conv"] = conv1(c).init(keys[3], jnp.zeros((1, 1, 1, c)))["params"]
    return params


def encode_moments(spec: VAESpec, params: Params, images: jax.Array) -> jax.Array:
    """Posterior of images (b, h, w, c) in [-1, 1]: (b, h / f, w / f, 2 latent_channels), the mean and the log-variance.

    They describe raw latents, neither shifted nor scaled; the log-variance is clipped to [-30, 20]. `sample_latents` draws
    from them. Raises `BadInput` unless the shape fits and h, w are multiples of `spec.factor`.
    """
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[3] != spec.in_channels or any(side % spec.factor for side in shape[1:3]):
        expected = f"(b, h, w, {spec.in_channels}), h and w multiples of {spec.factor}"
        raise BadInput(f"images to encode: shape {shape}, expected {expected}")
    raw = _each(functools.partial(_encoder(spec).apply, {"params": params["encoder"]}), images, shape[1] * shape[2])
    if spec.use_quant_conv:
        raw = _pointwise(params["quant_conv"], raw)
    mean, logvar = jnp.split(raw, 2, axis=-1)
    return jnp.concatenate([mean, jnp.clip(logvar, *LOGVAR_RANGE)], axis=-1)


def sample_latents(spec: VAESpec, moments: jax.Array, key: jax.Array | None) -> jax.Array:
    """A draw from the posterior `moments` (.., 2 latent_channels) as diffusion models see it: (.., latent_channels).

    mean + exp(logvar / 2) * normal(key), then shifted and scaled. Without a key: the mean, likewise.
    """
    mean, logvar = jnp.split(jnp.asarray(moments), 2, axis=-1)
    if key is not None:
        mean = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype)
    return (mean - _of(spec.shift_factor, mean)) * _of(spec.scaling_factor, mean)


def raw_latents(spec: VAESpec, latents: jax.Array) -> jax.Array:
    """Latents (.., latent_channels) as models see them, as the VAE itself does: neither shifted nor scaled."""
    return latents / _of(spec.scaling_factor, latents) + _of(spec.shift_factor, latents)


def _of(factor: PerChannel, latents: jax.Array) -> jax.Array | float:
    """A factor in the type of latents (.., c): () or (c,)."""
    return jnp.asarray(factor, latents.dtype) if isinstance(factor, tuple) else factor


def decode(spec: VAESpec, params: Params, latents: jax.Array) -> jax.Array:
    """Images (b, f h, f w, c), about [-1, 1] but not clipped, of latents (b, h, w, latent_channels) as models see them.

    Raises `BadInput` where the shape does not fit.
    """
    _check_latents(spec, latents)
    raw = raw_latents(spec, latents)
    if spec.use_post_quant_conv:
        raw = _pointwise(params["post_quant_conv"], raw)
    pixels = spec.factor**2 * raw.shape[1] * raw.shape[2]
    return _each(functools.partial(_decoder(spec).apply, {"params": params["decoder"]}), raw, pixels)


def decode_tiled(
    spec: VAESpec, params: Params, latents: jax.Array | np.ndarray, tile: int = 64, overlap: int = 16
) -> np.ndarray:
    """As `decode`, in square tiles of `tile` latents that overlap by at least `overlap` and fade into each other.

    Device memory is that of one tile, whatever the image. Tiles see less than the whole (normalisation and attention span
    all pixels), so the result is near `decode`'s, not equal to it. Raises `BadInput` unless 0 <= overlap < tile.
    """
    _check_latents(spec, latents)

    def run(part: np.ndarray) -> np.ndarray:
        return np.asarray(decode_compiled()(spec, params, part))

    return in_tiles(run, np.asarray(latents), tile, overlap, spec.factor)


@functools.cache
def decode_compiled() -> Callable[[VAESpec, Params, jax.Array | np.ndarray], jax.Array]:
    """`decode`, compiled as suits it where it runs."""
    return jax.jit(decode, static_argnums=0, compiler_options=compile_options())


def _each(network: Callable[[jax.Array], Any], x: jax.Array, pixels: int) -> jax.Array:
    """network(x (b, ...)); on a CPU one image after the other where each, of so many `pixels`, fills the cores by itself:
    that takes the memory of one, and convolutions their quickest form (`graftax.nets.winograd.suits`)."""

    def one_by_one(x: jax.Array) -> jax.Array:
        return jax.lax.map(lambda image: network(image[None])[0], x)

    if len(x) == 1 or pixels < ALONE:
        return network(x)
    return jax.lax.platform_dependent(x, cpu=one_by_one, default=network)


def _pointwise(p: Params, x: jax.Array) -> jax.Array:
    """The 1x1 convolution {"kernel" (1, 1, c, d), "bias" (d,)} of x (b, h, w, c)."""
    return x @ p["kernel"][0, 0] + p["bias"]


def _check_latents(spec: VAESpec, latents: jax.Array | np.ndarray) -> None:
    if latents.ndim != 4 or latents.shape[3] != spec.latent_channels:
        raise BadInput(f"latents to decode: shape {tuple(latents.shape)}, expected (b, h, w, {spec.latent_channels})")


def _encoder(spec: VAESpec) -> Encoder:
    return Encoder(*_sizes(spec), spec.down_attention, features=2 * spec.latent_channels)


def _decoder(spec: VAESpec) -> Decoder:
    return Decoder(*_sizes(spec), spec.up_attention, features=spec.out_channels)


def _sizes(spec: VAESpec) -> tuple[tuple[int, ...], int, int, bool]:
    return spec.block_out_channels, spec.layers_per_block, spec.norm_num_groups, spec.mid_block_add_attention
