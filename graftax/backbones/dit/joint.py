"""Models that denoise an image's latents together with features of it, as one array (b, h, w, c).

`channels` of the frame counts all of them; the last `features` of them are no latents. In ReDi (arXiv 2504.16064) they are
components of DINOv2's features at every place. In REG (arXiv 2507.01467) they hold a vector of `token` numbers, DINOv2's
class token, laid out over the pixels row by row with zeros at the end: the network reads it as one token more, and its
velocity comes back at the same places. So noise, samplers and guidance treat latents and features alike.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from graftax.errors import BadInput
from graftax.ops.attention_kv import ScaledLayerNorm
from graftax.spec import ModelSpec


def channels_of_token(numbers: int, pixels: int) -> int:
    """Channels that a vector takes over so many pixels."""
    return -(-numbers // pixels)


def check_joint(spec: ModelSpec) -> None:
    """Raise `BadInput` where the frame's `features` and `token` do not go with its images."""
    features, token = spec.option("features", 0), spec.option("token", 0)
    for name, value in {"features": features, "token": token}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise BadInput(f"ModelSpec.frame {name}: got {value!r}, expected an integer, 0 or more")
    rows, columns, channels = spec.image_shape
    if features >= channels:
        raise BadInput(f"ModelSpec.frame features: got {features}, expected fewer than the {channels} channels")
    if token and features != channels_of_token(token, rows * columns):
        expected = channels_of_token(token, rows * columns)
        raise BadInput(f"ModelSpec.frame features: got {features}, expected {expected} for a token of {token} numbers")


def joined(spec: ModelSpec, latents: jax.Array, vector: jax.Array) -> jax.Array:
    """Latents (b, h, w, c) and class vectors (b, k) as the one array (b, h, w, c + features) that the model denoises."""
    b, rows, columns, _ = latents.shape
    room = rows * columns * spec.option("features") - vector.shape[-1]
    spread = jnp.pad(vector, ((0, 0), (0, room))).reshape(b, rows, columns, -1)
    return jnp.concatenate([latents, spread.astype(latents.dtype)], axis=-1)


def parted(spec: ModelSpec, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inverse of `joined`: latents (b, h, w, c) and class vectors (b, k), of images, noise or velocities."""
    channels = spec.latent_channels
    return x[..., :channels], x[..., channels:].reshape(len(x), -1)[:, : spec.option("token")]


class ClassToken(nn.Module):
    """A class vector (b, k) -> a token (b, 1, d): a linear map, then a LayerNorm with scale and bias.

    Attributes:
        width: d.
    """

    width: int

    @nn.compact
    def __call__(self, vector: jax.Array) -> jax.Array:
        token = nn.Dense(self.width, kernel_init=nn.initializers.xavier_uniform(), name="linear")(vector)
        return ScaledLayerNorm(1e-6, name="norm")(token)[:, None]
