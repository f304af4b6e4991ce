"""InceptionV3 of 2015-12-05 in the form that FID is measured with, for images (b, h, w, 3) uint8.

The network is TensorFlow's frozen graph `classify_image_graph_def.pb`, not the InceptionV3 of today's libraries. Against
those: average pools do not count their padding, the last block pools by maximum where the first of its kind pools by
average, there are 1008 classes, and the input is resized bilinearly as TensorFlow 1 did it (`resize`). Layers carry the
names of the PyTorch port (mseitzer/pytorch-fid, `inception.py`); batch normalisation is part of each convolution's
kernel and bias, folded in by the importer (`graftax.nets.inception_files`).

Everything is computed in float32 with exact products, on TPU and GPU too: their faster defaults move features by a
percent.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from graftax.errors import BadInput

Params = dict[str, Any]
IMAGE_SIZE = 299
POOL_FEATURES = 2048
SPATIAL_CHANNELS = 7
SPATIAL_FEATURES = 17 * 17 * SPATIAL_CHANNELS
CLASSES = 1008
HEAD = "fc"
PRECISION = jax.lax.Precision.HIGHEST


class InceptionFeatures(NamedTuple):
    """What the metrics read, all float32.

    Attributes:
        pool: (b, 2048), the means of the last block over the image, for FID, precision and recall.
        spatial: (b, 2023), the first 7 channels of a 17x17 layer in the order (h, w, c), for sFID.
        logits: (b, 1008) without bias, for the Inception score, or None where the weights have no classifier.
    """

    pool: jax.Array
    spatial: jax.Array
    logits: jax.Array | None


def resize(images: jax.Array, size: int = IMAGE_SIZE) -> jax.Array:
    """Images (b, h, w, c), any size and number type, to (b, size, size, c) float32 in the same range, bilinearly as
    TensorFlow 1's `resize_bilinear(align_corners=False)`: output pixel i looks at i h / size, without half-pixel centres
    and without smoothing where it shrinks. (OpenAI's ADM evaluator does this inside its graph.)"""
    x = images.astype(jnp.float32)
    for axis in (2, 1):  # columns first, as TensorFlow's kernel
        low, high, share = _neighbours(x.shape[axis], size)
        shape = [1] * x.ndim
        shape[axis] = size
        below = jnp.take(x, low, axis)
        x = below + (jnp.take(x, high, axis) - below) * share.reshape(shape)
    return x


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per output pixel, the two input pixels between which it lies and how far from the first, in TensorFlow's float32."""
    at = np.arange(new, dtype=np.float32) * np.float32(np.float32(old) / np.float32(new))
    low = np.minimum(np.floor(at).astype(np.int32), old - 1)
    return low, np.minimum(low + 1, old - 1), at - low


class Conv(nn.Module):
    """Convolution with bias, then ReLU: (b, h, w, c) -> (b, h', w', features).

    Attributes:
        features: output channels.
        kernel: rows and columns.
        stride: along both axes.
        padding: as XLA calls it.
    """

    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        strides, axes = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, kernel, strides, self.padding, dimension_numbers=axes, precision=PRECISION
        )  # fmt: skip
        return nn.relu(y + bias)


def _pool(x: jax.Array, combine: Callable[[jax.Array, jax.Array], jax.Array], stride: int = 1) -> jax.Array:
    """3x3 windows of (b, h, w, c) without padding, first over rows, then columns: on CPUs several times as fast as XLA's
    `reduce_window`."""
    for axis in (1, 2):
        last = stride * ((x.shape[axis] - 3) // stride)
        first, *others = (jax.lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(3))
        x = functools.reduce(combine, others, first)
    return x


def _pad(x: jax.Array, value: float) -> jax.Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value)


def _average(x: jax.Array) -> jax.Array:
    ones = jnp.ones((1, *x.shape[1:3], 1))
    return _pool(_pad(x, 0.0), jnp.add) / _pool(_pad(ones, 0.0), jnp.add)  # padding is not counted


def _largest(x: jax.Array) -> jax.Array:
    return _pool(_pad(x, -jnp.inf), jnp.maximum)


def _shrink(x: jax.Array) -> jax.Array:
    return _pool(x, jnp.maximum, stride=2)


class BlockA(nn.Module):
    """35x35: branches of 1x1, 5x5, twice 3x3, and the average of neighbours.

    Attributes:
        pool: channels of the last branch.
    """

    pool: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = Conv(64, (1, 1), name="branch1x1")(x)
        five = Conv(64, (5, 5), name="branch5x5_2")(Conv(48, (1, 1), name="branch5x5_1")(x))
        three = Conv(96, (3, 3), name="branch3x3dbl_2")(Conv(64, (1, 1), name="branch3x3dbl_1")(x))
        three = Conv(96, (3, 3), name="branch3x3dbl_3")(three)
        pooled = Conv(self.pool, (1, 1), name="branch_pool")(_average(x))
        return jnp.concatenate([one, five, three, pooled], -1)


class BlockB(nn.Module):
    """35x35 -> 17x17."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = Conv(384, (3, 3), 2, "VALID", name="branch3x3")(x)
        double = Conv(96, (3, 3), name="branch3x3dbl_2")(Conv(64, (1, 1), name="branch3x3dbl_1")(x))
        double = Conv(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(double)
        return jnp.concatenate([three, double, _shrink(x)], -1)


class BlockC(nn.Module):
    """17x17: 7x7 convolutions as rows and columns. Also returns the 1x1 branch (b, 17, 17, 192).

    Attributes:
        width: channels of these convolutions.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        c, row, column = self.width, (1, 7), (7, 1)
        one = Conv(192, (1, 1), name="branch1x1")(x)
        seven = Conv(c, row, name="branch7x7_2")(Conv(c, (1, 1), name="branch7x7_1")(x))
        seven = Conv(192, column, name="branch7x7_3")(seven)
        double = Conv(c, column, name="branch7x7dbl_2")(Conv(c, (1, 1), name="branch7x7dbl_1")(x))
        double = Conv(c, column, name="branch7x7dbl_4")(Conv(c, row, name="branch7x7dbl_3")(double))
        double = Conv(192, row, name="branch7x7dbl_5")(double)
        pooled = Conv(192, (1, 1), name="branch_pool")(_average(x))
        return jnp.concatenate([one, seven, double, pooled], -1), one


class BlockD(nn.Module):
    """17x17 -> 8x8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = Conv(320, (3, 3), 2, "VALID", name="branch3x3_2")(Conv(192, (1, 1), name="branch3x3_1")(x))
        seven = Conv(192, (1, 7), name="branch7x7x3_2")(Conv(192, (1, 1), name="branch7x7x3_1")(x))
        seven = Conv(192, (7, 1), name="branch7x7x3_3")(seven)
        seven = Conv(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, _shrink(x)], -1)


class BlockE(nn.Module):
    """8x8: 3x3 convolutions split into a row beside a column.

    Attributes:
        largest: the pool takes maxima, not averages.
    """

    largest: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = Conv(320, (1, 1), name="branch1x1")(x)
        three = Conv(384, (1, 1), name="branch3x3_1")(x)
        double = Conv(384, (3, 3), name="branch3x3dbl_2")(Conv(448, (1, 1), name="branch3x3dbl_1")(x))
        halves = [
            Conv(384, kernel, name=name)(branch)
            for branch, prefix in ((three, "branch3x3_2"), (double, "branch3x3dbl_3"))
            for name, kernel in ((f"{prefix}a", (1, 3)), (f"{prefix}b", (3, 1)))
        ]
        pooled = _largest(x) if self.largest else _average(x)
        return jnp.concatenate([one, *halves, Conv(192, (1, 1), name="branch_pool")(pooled)], -1)


class InceptionV3(nn.Module):
    """Resized images (b, 299, 299, 3) in [-1, 1) -> (pool (b, 2048), spatial (b, 2023)), without the classifier."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = Conv(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)  # (b, 149, 149, 32)
        x = Conv(32, (3, 3), padding="VALID", name="Conv2d_2a_3x3")(x)  # (b, 147, 147, 32)
        x = _shrink(Conv(64, (3, 3), name="Conv2d_2b_3x3")(x))  # (b, 73, 73, 64)
        x = Conv(192, (3, 3), padding="VALID", name="Conv2d_4a_3x3")(Conv(80, (1, 1), name="Conv2d_3b_1x1")(x))
        x = _shrink(x)  # (b, 35, 35, 192)
        for name, pool in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = BlockA(pool, name=name)(x)  # (b, 35, 35, 224 + pool)
        x = BlockB(name="Mixed_6a")(x)  # (b, 17, 17, 768)
        ones = {}
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x, ones[name] = BlockC(width, name=name)(x)
        x = BlockD(name="Mixed_7a")(x)  # (b, 8, 8, 1280)
        x = BlockE(False, name="Mixed_7b")(x)  # (b, 8, 8, 2048)
        x = BlockE(True, name="Mixed_7c")(x)
        # "mixed_6/conv" of TensorFlow's graph: its mixed_4, 5, 6, 7 are Mixed_6b, c, d, e here.
        spatial = ones["Mixed_6d"][..., :SPATIAL_CHANNELS]
        return x.mean((1, 2)), spatial.reshape(len(x), -1)


def init(key: jax.Array) -> Params:
    """Random float32 parameters with classifier, for tests and timings: features of them mean nothing."""
    params = dict(InceptionV3().init(key, jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3)))["params"])
    kernel = nn.initializers.lecun_normal()(jax.random.fold_in(key, 1), (POOL_FEATURES, CLASSES))
    return {**params, HEAD: {"kernel": kernel}}


def param_shapes() -> Params:
    """The tree of `init` as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(init, jax.random.key(0))


def features(params: Params, images: jax.Array) -> InceptionFeatures:
    """Features of images (b, h, w, 3) uint8, any size, resized and scaled to (x - 128) / 128 as the reference does.

    Raises `BadInput` on other shapes or types: the range is part of the metric.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.uint8:
        raise BadInput(f"Inception: images {images.dtype}{images.shape}, expected uint8 (b, h, w, 3)")
    trunk = {name: leaf for name, leaf in params.items() if name != HEAD}
    found: Any = InceptionV3().apply({"params": trunk}, (resize(images) - 128) / 128)
    pool, spatial = found
    logits = jnp.matmul(pool, params[HEAD]["kernel"], precision=PRECISION) if HEAD in params else None
    return InceptionFeatures(pool, spatial, logits)
