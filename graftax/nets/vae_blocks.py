"""The layers of the Stable Diffusion autoencoder: residual blocks, changes of resolution, encoder and decoder.

Submodules are named as in diffusers' AutoencoderKL, with underscores: "down_blocks_0_resnets_1", "mid_block/attentions_0".
Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv 2112.10752); epsilon, padding
and scales are those of diffusers' models/autoencoders/vae.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

EPS = 1e-6
"""Of every group normalisation."""


def conv3(features: int, name: str) -> nn.Conv:
    """A 3x3 convolution that keeps height and width."""
    return nn.Conv(features, (3, 3), padding=1, name=name)


def conv1(features: int, name: str | None = None) -> nn.Conv:
    """A 1x1 convolution."""
    return nn.Conv(features, (1, 1), name=name)


def norm(groups: int, name: str) -> nn.GroupNorm:
    """Group normalisation over height, width and each group's channels."""
    # The fast variance, E[x^2] - E[x]^2, loses digits where the mean is large.
    return nn.GroupNorm(groups, epsilon=EPS, use_fast_variance=False, name=name)


class ResBlock(nn.Module):
    """shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x)))))): (b, h, w, c) -> (b, h, w, features).

    Attributes:
        features: output channels.
        groups: of the normalisations.
    """

    features: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = conv3(self.features, "conv1")(nn.silu(norm(self.groups, "norm1")(x)))
        y = conv3(self.features, "conv2")(nn.silu(norm(self.groups, "norm2")(y)))
        if x.shape[-1] != self.features:
            x = conv1(self.features, "conv_shortcut")(x)
        return x + y


class Attention(nn.Module):
    """x + out(attention of one head over all pixels of norm(x)), in float32: (b, h, w, c) is kept.

    Attributes:
        groups: of the normalisation.
    """

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        y = norm(self.groups, "group_norm")(x).reshape(b, h * w, c)  # (b, n, c)
        q, k, v = (nn.Dense(c, name=name)(y) for name in ("to_q", "to_k", "to_v"))
        scores = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32) * c**-0.5
        y = jnp.einsum("bqk,bkc->bqc", nn.softmax(scores), v)
        return x + nn.Dense(c, name="to_out")(y).reshape(b, h, w, c)


class MidBlock(nn.Module):
    """Residual block, attention, residual block; shape (b, h, w, c) is kept.

    Attributes:
        groups: of the normalisations.
        attention: whether there is one.
    """

    groups: int
    attention: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ResBlock(x.shape[-1], self.groups, name="resnets_0")(x)
        if self.attention:
            x = Attention(self.groups, name="attentions_0")(x)
        return ResBlock(x.shape[-1], self.groups, name="resnets_1")(x)


class Encoder(nn.Module):
    """(b, h, w, 3) -> (b, h / f, w / f, features), f = 2 ** (len(widths) - 1): `layers` residual blocks at each width.

    Attributes:
        widths: channels from full to lowest resolution.
        layers: residual blocks of the encoder at each width.
        groups: of the normalisations.
        attention: whether the middle block has one.
        features: output channels.
    """

    widths: tuple[int, ...]
    layers: int
    groups: int
    attention: bool
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = conv3(self.widths[0], "conv_in")(x)
        below_and_right = ((0, 1), (0, 1))  # the only padding of the steps down
        for i, width in enumerate(self.widths):
            for j in range(self.layers):
                x = ResBlock(width, self.groups, name=f"down_blocks_{i}_resnets_{j}")(x)
            if i < len(self.widths) - 1:
                step = nn.Conv(width, (3, 3), 2, below_and_right, name=f"down_blocks_{i}_downsample")
                x = step(x)  # (b, h / 2, w / 2, width)
        x = MidBlock(self.groups, self.attention, name="mid_block")(x)
        return conv3(self.features, "conv_out")(nn.silu(norm(self.groups, "conv_norm_out")(x)))


class Decoder(nn.Module):
    """(b, h, w, c) -> (b, f h, f w, features): as `Encoder` backwards, with one more residual block at each width.

    Attributes:
        widths: channels from full to lowest resolution.
        layers: residual blocks of the encoder at each width.
        groups: of the normalisations.
        attention: whether the middle block has one.
        features: output channels.
    """

    widths: tuple[int, ...]
    layers: int
    groups: int
    attention: bool
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = conv3(self.widths[-1], "conv_in")(x)
        x = MidBlock(self.groups, self.attention, name="mid_block")(x)
        for i, width in enumerate(reversed(self.widths)):
            for j in range(self.layers + 1):
                x = ResBlock(width, self.groups, name=f"up_blocks_{i}_resnets_{j}")(x)
            if i < len(self.widths) - 1:
                x = conv3(width, f"up_blocks_{i}_upsample")(doubled(x))  # (b, 2 h, 2 w, width)
        return conv3(self.features, "conv_out")(nn.silu(norm(self.groups, "conv_norm_out")(x)))


def doubled(x: jax.Array) -> jax.Array:
    """(b, h, w, c) -> (b, 2 h, 2 w, c): every pixel becomes four."""
    return x.repeat(2, axis=1).repeat(2, axis=2)
