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


class GroupNorm(nn.Module):
    """(x - mean) / deviation * scale + bias over height, width and each group's channels, in float32: (b, h, w, c).

    Sums run over pixels for every channel by itself first, and channels of a group meet as vectors (b, g, c / g): a CPU
    sums whole rows of channels, and what is left for each pixel is one product and one sum. Both variances are of centred
    numbers, for E[x^2] - E[x]^2 loses digits where the mean is large.

    Attributes:
        groups: that the channels are cut into.
    """

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        scale, bias = self.param("scale", nn.initializers.ones, (c,)), self.param("bias", nn.initializers.zeros, (c,))
        wide = x.astype(jnp.float32)
        own = wide.mean((1, 2), keepdims=True)  # (b, 1, 1, c)
        within = jnp.square(wide - own).mean((1, 2))  # (b, c)
        means = own.reshape(len(x), self.groups, -1)  # (b, g, c / g)
        mean = means.mean(-1, keepdims=True)
        variance = (within.reshape(means.shape) + jnp.square(means - mean)).mean(-1, keepdims=True)  # (b, g, 1)
        factor = jax.lax.rsqrt(variance + EPS) * scale.reshape(self.groups, -1)  # (b, g, c / g)
        shift = bias.reshape(self.groups, -1) - mean * factor
        return (wide * factor.reshape(own.shape) + shift.reshape(own.shape)).astype(x.dtype)


def norm(groups: int, name: str) -> GroupNorm:
    """Group normalisation over height, width and each group's channels."""
    return GroupNorm(groups, name=name)


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
        attended: numbers of the widths at which attention follows each residual block.
        features: output channels.
    """

    widths: tuple[int, ...]
    layers: int
    groups: int
    attention: bool
    attended: tuple[int, ...]
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = conv3(self.widths[0], "conv_in")(x)
        below_and_right = ((0, 1), (0, 1))  # the only padding of the steps down
        for i, width in enumerate(self.widths):
            for j in range(self.layers):
                x = ResBlock(width, self.groups, name=f"down_blocks_{i}_resnets_{j}")(x)
                if i in self.attended:
                    x = Attention(self.groups, name=f"down_blocks_{i}_attentions_{j}")(x)
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
        attended: numbers of the widths at which attention follows each residual block.
        features: output channels.
    """

    widths: tuple[int, ...]
    layers: int
    groups: int
    attention: bool
    attended: tuple[int, ...]
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = conv3(self.widths[-1], "conv_in")(x)
        x = MidBlock(self.groups, self.attention, name="mid_block")(x)
        for i, width in enumerate(reversed(self.widths)):
            for j in range(self.layers + 1):
                x = ResBlock(width, self.groups, name=f"up_blocks_{i}_resnets_{j}")(x)
                if len(self.widths) - 1 - i in self.attended:
                    x = Attention(self.groups, name=f"up_blocks_{i}_attentions_{j}")(x)
            if i < len(self.widths) - 1:
                x = DoubledConv(width, name=f"up_blocks_{i}_upsample")(x)  # (b, 2 h, 2 w, width)
        return conv3(self.features, "conv_out")(nn.silu(norm(self.groups, "conv_norm_out")(x)))


class DoubledConv(nn.Module):
    """Every pixel becomes four, then a 3x3 convolution: (b, h, w, c) -> (b, 2 h, 2 w, features).

    The nine weights meet four pixels of the small image alone, so that their sums are a 2x2 convolution for each of the four
    places of a new pixel within its old one: 4 / 9 of the products, on the small image.

    Attributes:
        features: output channels.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        rows = [_halved(kernel, 0, place) for place in (0, 1)]
        parts = [
            jax.lax.conv_general_dilated(
                x, _halved(rows[i], 1, j).astype(x.dtype), (1, 1), ((1 - i, i), (1 - j, j)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            for i in (0, 1)
            for j in (0, 1)
        ]  # fmt: skip
        places = jnp.stack(parts, axis=3).reshape(b, h, w, 2, 2, -1)  # (b, h, w, row, column, features)
        return places.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, -1) + bias.astype(x.dtype)


def _halved(kernel: jax.Array, axis: int, place: int) -> jax.Array:
    """Three weights along an axis as the two that the pixels at `place` 0 or 1 within an old one see of the old ones."""
    first, middle, last = jnp.split(kernel, 3, axis)
    return jnp.concatenate([first, middle + last] if place == 0 else [first + middle, last], axis)
