"""FLOPs of autoencoders: the closed form against XLA's count at true size, and the figures that others publish."""

import dataclasses

import pytest

from graftax.errors import BadInput
from graftax.evaluate.bench.tokenizers import count_autoencoder, count_vae
from graftax.nets.autoencoder import AutoencoderSpec
from graftax.nets.vae import SD, VA_VAE, VAESpec
from graftax.nets.vae_cost import autoencoder_flops, decode_flops, encode_flops

GMAC = 2e9


def test_stable_diffusions_vae():
    """The 445.87 G of the debate, 135 + 310 elsewhere, are multiply-adds, and of both halves."""
    encode, decode = encode_flops(SD, 256), decode_flops(SD, 256, published=True)
    assert (encode + decode) / GMAC == pytest.approx(445.87, rel=4e-3)
    assert (encode / GMAC, decode / GMAC) == (pytest.approx(135, rel=0.012), pytest.approx(310, rel=0.012))
    for counted, ours in zip(count_vae(SD, 256), (encode, decode_flops(SD, 256)), strict=True):
        assert 0.98 * ours < counted < ours  # XLA leaves out products with padding
    saved = sum(5 * side**2 * width**2 for side, width in ((64, 512), (128, 512), (256, 256)))
    assert decode - decode_flops(SD, 256) == 2 * saved  # behind the three steps up


def test_va_vae():
    costs = encode_flops(VA_VAE, 256), decode_flops(VA_VAE, 256, published=True)
    assert [round(cost / GMAC, 1) for cost in costs] == [69.0, 126.1]
    plain = dataclasses.replace(VA_VAE, down_attention=(), up_attention=())
    one = 8 * 256 * 512**2 + 4 * 256**2 * 512  # attention behind a block
    assert costs[0] - encode_flops(plain, 256) == 2 * one
    assert costs[1] - decode_flops(plain, 256, published=True) == 3 * one
    for counted, ours in zip(count_vae(VA_VAE, 256), (costs[0], decode_flops(VA_VAE, 256)), strict=True):
        assert 0.97 * ours < counted < ours


def test_a_small_vae_without_attention():
    """Padding tells more at 64 pixels: XLA counts a share of (1 - 2 / 3s) of each axis, s a side of at least 8."""
    spec = VAESpec(
        block_out_channels=(16, 32), norm_num_groups=8, use_quant_conv=False, use_post_quant_conv=False,
        mid_block_add_attention=False,
    )  # fmt: skip
    for counted, ours in zip(count_vae(spec, 64), (encode_flops(spec, 64), decode_flops(spec, 64)), strict=True):
        assert (1 - 2 / (3 * 32)) ** 2 * ours <= counted < ours
    with pytest.raises(BadInput, match="pixels: got 63, expected a positive multiple of 2"):
        encode_flops(spec, 63)


def test_the_demos_autoencoder():
    spec = AutoencoderSpec()
    for counted, ours in zip(count_autoencoder(spec), autoencoder_flops(spec), strict=True):
        assert (1 - 2 / (3 * 8)) ** 2 * ours <= counted < ours
