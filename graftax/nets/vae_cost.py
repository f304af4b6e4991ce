"""What autoencoders cost: forward FLOPs in closed form, 2 per multiply-add, of convolutions and attention on one image.

Norms, activations and residual sums do not count, as in `graftax.models.cost`. Convolutions count as accelerators run them;
on CPUs most take 16 products for 36 (`graftax.nets.winograd`).
"""

from __future__ import annotations

from graftax.errors import BadInput
from graftax.nets.autoencoder import FACTOR, AutoencoderSpec
from graftax.nets.vae import VAESpec


def encode_flops(spec: VAESpec, pixels: int) -> int:
    """Of `graftax.nets.vae.encode_moments` on one image of `pixels` a side. Raises `BadInput` where `pixels` is no positive
    multiple of the spec's factor.
    """
    _check(pixels, spec.factor)
    widths, side, c, total = spec.block_out_channels, pixels, spec.block_out_channels[0], 0
    total += _conv(side, spec.in_channels, c)
    for i, width in enumerate(widths):
        total += _level(side, c, width, spec.layers_per_block, i in spec.down_attention)
        if i < len(widths) - 1:
            side //= 2
            total += _conv(side, width, width)  # the step down
        c = width
    features = 2 * spec.latent_channels
    total += _middle(spec, side) + _conv(side, c, features)
    return total + _conv(side, features, features, 1) * spec.use_quant_conv


def decode_flops(spec: VAESpec, pixels: int, *, published: bool = False) -> int:
    """Of `graftax.nets.vae.decode` to one image of `pixels` a side; as `encode_flops`. As `published`, convolutions behind
    steps up meet the large image; here they meet the small one, with 4 / 9 of the products (`vae_blocks.DoubledConv`)."""
    _check(pixels, spec.factor)
    widths, side, c = spec.block_out_channels, pixels // spec.factor, spec.block_out_channels[-1]
    total = _conv(side, spec.latent_channels, spec.latent_channels, 1) * spec.use_post_quant_conv
    total += _conv(side, spec.latent_channels, c) + _middle(spec, side)
    for i, width in enumerate(reversed(widths)):
        total += _level(side, c, width, spec.layers_per_block + 1, len(widths) - 1 - i in spec.up_attention)
        if i < len(widths) - 1:
            side *= 2
            total += _conv(side, width, width, 9 if published else 4)  # behind the step up
        c = width
    return total + _conv(side, c, spec.out_channels)


def autoencoder_flops(spec: AutoencoderSpec) -> tuple[int, int]:
    """Of the demo's autoencoder, `graftax.nets.autoencoder`: encoder and decoder on one image."""
    side, half, w, c = spec.image_size // FACTOR, spec.image_size // 2, spec.width, spec.image_channels
    residual = 2 * spec.res_blocks * _conv(side, w, w)
    encode = _conv(half, 4 * c, w // 2) + _conv(side, 2 * w, w) + residual + _conv(side, w, spec.latent_channels, 1)
    decode = _conv(side, spec.latent_channels, w) + residual + _conv(side, w, 2 * w, 1)
    return encode, decode + _conv(half, w // 2, w // 2) + _conv(half, w // 2, 4 * c)


def _check(pixels: int, factor: int) -> None:
    if pixels < 1 or pixels % factor:
        raise BadInput(f"pixels: got {pixels}, expected a positive multiple of {factor}")


def _conv(side: int, fan_in: int, fan_out: int, taps: int = 9) -> int:
    return 2 * side**2 * fan_in * fan_out * taps


def _residual(side: int, fan_in: int, fan_out: int) -> int:
    shortcut = _conv(side, fan_in, fan_out, 1) if fan_in != fan_out else 0
    return _conv(side, fan_in, fan_out) + _conv(side, fan_out, fan_out) + shortcut


def _attention(side: int, c: int) -> int:
    return 4 * _conv(side, c, c, 1) + 2 * 2 * side**4 * c


def _level(side: int, fan_in: int, width: int, blocks: int, attended: bool) -> int:
    """Residual blocks of one resolution, each followed by attention where it is `attended`."""
    first, others = _residual(side, fan_in, width), (blocks - 1) * _residual(side, width, width)
    return first + others + blocks * _attention(side, width) * attended


def _middle(spec: VAESpec, side: int) -> int:
    c = spec.block_out_channels[-1]
    return 2 * _residual(side, c, c) + _attention(side, c) * spec.mid_block_add_attention
