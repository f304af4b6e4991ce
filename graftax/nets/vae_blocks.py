"""The layers of the Stable Diffusion autoencoder: residual blocks, changes of resolution, encoder and decoder.

Submodules are named as in diffusers' AutoencoderKL, with underscores: "down_blocks_0_resnets_1", "mid_block/attentions_0".
Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv 2112.10752); epsilon, padding
and scales are those of diffusers' models/autoencoders/vae.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from graftax.nets.winograd import conv3x3, doubled_conv3x3

EPS = 1e-6
"""Of every group normalisation."""


class Conv3(nn.Module):
    """A 3x3 convolution that keeps height and width: (b, h, w, c) -> (b, h, w, features).

    Attributes:
        features: output channels.
    """

    features: int
    convolution = staticmethod(conv3x3)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias)
        return self.convolution(x, kernel) + bias


def conv1(features: int, name: str | None = None) -> nn.Conv:
    """A 1x1 convolution."""
    return nn.Conv(features, (1, 1), name=name)


class GroupNorm(nn.Module):
    """(x - mean) / deviation * scale + bias over height, width and each group's channels, in float32: (b, h, w, c).

    Sums run over pixels for every channel by itself first; a product with a small matrix then hands every channel what its
    group has. So what is left for each pixel is one product and one sum with rows of channels as they lie in memory;
    broadcasting from groups to channels there would cost a CPU as much again. Both variances are of centred numbers, for
    E[x^2] - E[x]^2 loses digits where the mean is large.

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
        within = jnp.square(wide - own).mean((1, 2), keepdims=True)
        mean = self.grouped(own)
        variance = self.grouped(within + jnp.square(own - mean))
        factor = jax.lax.rsqrt(variance + EPS) * scale
        return (wide * factor + (bias - mean * factor)).astype(x.dtype)

    def grouped(self, values: jax.Array) -> jax.Array:
        """(b, 1, 1, c) -> the mean over each one's group, (b, 1, 1, c)."""
        means = values.reshape(*values.shape[:-1], self.groups, -1).mean(-1)
        spread = np.repeat(np.eye(self.groups, dtype=np.float32), values.shape[-1] // self.groups, axis=1)  # (g, c)
        return jnp.dot(means, spread, precision=jax.lax.Precision.HIGHEST)


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
        y = Conv3(self.features, name="conv1")(nn.silu(norm(self.groups, "norm1")(x)))
        y = Conv3(self.features, name="conv2")(nn.silu(norm(self.groups, "norm2")(y)))
        if x.shape[-1] != self.features:
            x = conv1(self.features, "conv_shortcut")(x)
        return x + y


class DenseWeights(nn.Module):
    """Kernel (c, features) and bias (features,) of an `nn.Dense`, for those who multiply themselves.

    Attributes:
        features: output channels.
    """

    features: int

    @nn.compact
    def __call__(self, c: int) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (c, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


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
        # One product for all three: XLA's compiler for CPUs would fuse three of their own into that of the scores, which
        # takes it three times as long.
        kernels, biases = zip(*(DenseWeights(c, name=name)(c) for name in ("to_q", "to_k", "to_v")), strict=True)
        q, k, v = jnp.split(y @ jnp.concatenate(kernels, 1) + jnp.concatenate(biases), 3, axis=-1)  # (b, n, c) each
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
        x = Conv3(self.widths[0], name="conv_in")(x)
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
        return Conv3(self.features, name="conv_out")(nn.silu(norm(self.groups, "conv_norm_out")(x)))


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
        x = Conv3(self.widths[-1], name="conv_in")(x)
        x = MidBlock(self.groups, self.attention, name="mid_block")(x)
        for i, width in enumerate(reversed(self.widths)):
            for j in range(self.layers + 1):
                x = ResBlock(width, self.groups, name=f"up_blocks_{i}_resnets_{j}")(x)
                if len(self.widths) - 1 - i in self.attended:
                    x = Attention(self.groups, name=f"up_blocks_{i}_attentions_{j}")(x)
            if i < len(self.widths) - 1:
                x = DoubledConv(width, name=f"up_blocks_{i}_upsample")(x)  # (b, 2 h, 2 w, width)
        return Conv3(self.features, name="conv_out")(nn.silu(norm(self.groups, "conv_norm_out")(x)))


class DoubledConv(Conv3):
    """Every pixel becomes four, then a 3x3 convolution: (b, h, w, c) -> (b, 2 h, 2 w, features)."""

    convolution = staticmethod(doubled_conv3x3)
