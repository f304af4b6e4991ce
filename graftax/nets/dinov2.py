"""DINOv2: vision transformers whose features see images much as people do, for Fréchet distances beyond Inception's.

`features` is what evaluations take: the normalised class token of images that are resized to 224 and normalised as ImageNet
is. All is computed in float32 with exact products, on TPU and GPU too. Numerics are those of transformers' Dinov2Model and
Dinov2WithRegistersModel.

Sources: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision" (arXiv 2304.07193); Darcet et al.,
"Vision Transformers Need Registers" (arXiv 2309.16588); as a feature space, with ViT-L/14: Stein et al., "Exposing flaws of
generative model evaluation metrics and their unfair treatment of diffusion models" (arXiv 2306.04675).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from graftax.errors import BadInput

Params = dict[str, Any]
EPS = 1e-6
IMAGE_SIZE = 224
"""Side to which `features` resizes, 16 x 16 patches; positions were trained at `DINOv2Spec.image_size`."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, of channels in [0, 1]."""


@dataclass(frozen=True)
class DINOv2Spec:
    """Sizes of a DINOv2; fields are named as in its config.json of transformers. Raises `BadInput` on sizes that cannot be.

    Attributes:
        hidden_size: width d of a token.
        num_hidden_layers: blocks.
        num_attention_heads: heads h.
        mlp_ratio: hidden width of the MLPs over d.
        patch_size: side of a patch in pixels.
        image_size: side for which it has positions; other sides interpolate them.
        num_register_tokens: 0 for models without registers.
        use_swiglu_ffn: the gated MLP of ViT-g.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    mlp_ratio: int = 4
    patch_size: int = 14
    image_size: int = 518
    num_register_tokens: int = 0
    use_swiglu_ffn: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self)[:6]:
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadInput(f"DINOv2Spec.{field.name}: got {value!r}, expected a positive integer")
        if not isinstance(self.num_register_tokens, int) or self.num_register_tokens < 0:
            raise BadInput(f"DINOv2Spec.num_register_tokens: got {self.num_register_tokens!r}, expected 0 or more")
        if self.hidden_size % self.num_attention_heads:
            raise BadInput(f"DINOv2Spec.hidden_size {self.hidden_size}: no multiple of {self.num_attention_heads} heads")
        if self.image_size < self.patch_size:
            raise BadInput(f"DINOv2Spec.image_size {self.image_size}: less than patch_size {self.patch_size}")

    @property
    def grid(self) -> int:
        """Patches along each side for which there are positions."""
        return self.image_size // self.patch_size

    @property
    def mlp_width(self) -> int:
        """Hidden neurons; a gated MLP has two thirds, rounded up to a multiple of 8, so that its cost is the same."""
        width = self.hidden_size * self.mlp_ratio
        return (int(width * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else width


VARIANTS = {
    "S/14": DINOv2Spec(384, 12, 6),
    "B/14": DINOv2Spec(768, 12, 12),
    "L/14": DINOv2Spec(1024, 24, 16),
    "g/14": DINOv2Spec(1536, 40, 24, use_swiglu_ffn=True),
}
"""The published models: 22, 87, 304 and 1136 million parameters."""


class Block(nn.Module):
    """One pre-norm transformer block whose two branches are scaled per channel: (b, n, d) is kept.

    Attributes:
        spec: sizes.
    """

    spec: DINOv2Spec

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self._scale("scale1", x.shape[-1]) * self._attention(norm("norm1")(x))
        return x + self._scale("scale2", x.shape[-1]) * self._mlp(norm("norm2")(x))

    def _scale(self, name: str, width: int) -> jax.Array:
        return self.param(name, nn.initializers.ones, (width,))

    def _attention(self, x: jax.Array) -> jax.Array:
        b, n, d = x.shape
        heads = (b, n, self.spec.num_attention_heads, -1)
        q, k, v = (nn.Dense(d, name=name)(x).reshape(heads) for name in ("query", "key", "value"))  # (b, n, h, k)
        return nn.Dense(d, name="proj")(nn.dot_product_attention(q, k, v).reshape(b, n, d))

    def _mlp(self, x: jax.Array) -> jax.Array:
        width = self.spec.mlp_width
        if self.spec.use_swiglu_ffn:
            gate, up = jnp.split(nn.Dense(2 * width, name="fc1")(x), 2, axis=-1)  # (b, n, width) each
            hidden = nn.silu(gate) * up
        else:
            hidden = nn.gelu(nn.Dense(width, name="fc1")(x), approximate=False)
        return nn.Dense(x.shape[-1], name="fc2")(hidden)


class DINOv2(nn.Module):
    """Normalised images (b, h, w, 3) -> tokens (b, 1 + registers + patches, d): class, registers, patches row by row.

    Attributes:
        spec: sizes.
    """

    spec: DINOv2Spec

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        spec, d = self.spec, self.spec.hidden_size
        patch, normal = (spec.patch_size, spec.patch_size), nn.initializers.normal(0.02)
        x = nn.Conv(d, patch, patch, padding="VALID", name="patch_embed")(images)  # (b, h / p, w / p, d)
        b, high, wide, _ = x.shape
        positions = self.param("pos_embed", normal, (1, 1 + spec.grid**2, d))
        first, table = positions[:, :1], positions[:, 1:].reshape(spec.grid, spec.grid, d)
        x = (x + interpolated(table, (high, wide), smooth=spec.num_register_tokens > 0)).reshape(b, high * wide, d)
        tokens = [self.param("cls_token", normal, (1, 1, d)) + first]
        if spec.num_register_tokens:
            tokens.append(self.param("register_tokens", normal, (1, spec.num_register_tokens, d)))
        x = jnp.concatenate([*(jnp.broadcast_to(token, (b, *token.shape[1:])) for token in tokens), x], axis=1)
        for i in range(spec.num_hidden_layers):
            x = Block(spec, name=f"blocks_{i}")(x)
        return norm("norm")(x)


def norm(name: str) -> nn.LayerNorm:
    """Layer normalisation over channels."""
    return nn.LayerNorm(epsilon=EPS, use_fast_variance=False, name=name)


def init(spec: DINOv2Spec, key: jax.Array) -> Params:
    """Fresh float32 parameters."""
    return DINOv2(spec).init(key, jnp.zeros((1, spec.patch_size, spec.patch_size, 3)))["params"]  # pyright: ignore


def tokens(spec: DINOv2Spec, params: Params, images: jax.Array) -> jax.Array:
    """Last normalised tokens (b, 1 + registers + patches, d) of `preprocess`ed images (b, h, w, 3).

    Raises `BadInput` unless h and w are multiples of the patch size.
    """
    if images.ndim != 4 or images.shape[3] != 3 or any(side % spec.patch_size for side in images.shape[1:3]):
        expected = f"(b, h, w, 3), h and w multiples of {spec.patch_size}"
        raise BadInput(f"images for DINOv2: shape {tuple(images.shape)}, expected {expected}")
    with jax.default_matmul_precision("highest"):
        return DINOv2(spec).apply({"params": params}, images)  # pyright: ignore[reportReturnType]


def preprocess(images: jax.Array, size: int = IMAGE_SIZE) -> jax.Array:
    """uint8 images (b, h, w, 3), resized as Pillow's BICUBIC does and normalised: (b, size, size, 3) float32.

    Columns first, then rows, each smoothed where it shrinks and rounded to whole levels. (Newer Pillows take the rows first
    where an image is higher than wide.)
    """
    b, h = images.shape[:2]
    x = images.astype(jnp.float32)
    with jax.default_matmul_precision("highest"):
        for shape in ((b, h, size, 3), (b, size, size, 3)):
            x = jnp.floor(jnp.clip(jax.image.resize(x, shape, "cubic", antialias=True), 0, 255) + 0.5)
    return (x / 255 - jnp.asarray(MEAN)) / jnp.asarray(STD)


def features(spec: DINOv2Spec, params: Params, images: jax.Array) -> jax.Array:
    """Class tokens (b, d) of images (b, h, w, 3) uint8 of any size, the feature space of a Fréchet distance."""
    return tokens(spec, params, preprocess(images))[:, 0]


def patches(spec: DINOv2Spec, params: Params, images: jax.Array, grid: int) -> jax.Array:
    """Patch tokens (b, grid^2, d), row by row, of square images (b, h, h, 3) uint8, at the size that has so many: 224 pixels
    for 16 x 16 of patch 14, as REPA (arXiv 2410.06940) aligns the tokens of latents to."""
    return tokens(spec, params, preprocess(images, grid * spec.patch_size))[:, 1 + spec.num_register_tokens :]


def interpolated(table: jax.Array, sides: tuple[int, int], smooth: bool) -> jax.Array:
    """A position table (g, g, d) at another grid (h, w, d), bicubic, as PyTorch's `interpolate` without aligned corners.

    `smooth`, as models with registers want it: filtered where it shrinks (PyTorch's antialias, kernel of a = -0.5, weights
    beyond the border dropped). Without: four neighbours, a = -0.75, the border repeated.
    """
    if table.shape[:2] == sides:
        return table
    if smooth:
        return jax.image.resize(table, (*sides, table.shape[2]), "cubic", antialias=True)
    rows, columns = (jnp.asarray(_cubic(table.shape[0], side)) for side in sides)  # (h, g), (w, g)
    return jnp.einsum("hg,wk,gkd->hwd", rows, columns, table)


def _cubic(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """(new, old) float32: weights of the input pixels in each output pixel (Keys' cubic convolution)."""
    weights = np.zeros((new, old))
    at = (np.arange(new) + 0.5) * old / new - 0.5
    low = np.floor(at).astype(int)
    for offset in (-1, 0, 1, 2):
        x = np.abs(at - low - offset)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = ((x - 5) * x + 8) * x * a - 4 * a
        np.add.at(weights, (np.arange(new), np.clip(low + offset, 0, old - 1)), np.where(x <= 1, near, far))
    return weights.astype(np.float32)
