"""DINOv2 by itself: true sizes, preprocessing, shapes. Comparison with transformers is in checkpoint/test_dinov2."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from graftax.errors import BadInput
from graftax.nets import dinov2

TINY = dinov2.DINOv2Spec(24, 1, 2, image_size=28)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("S/14", 22_056_192),
        pytest.param("B/14", 86_579_712, marks=pytest.mark.slow),
        pytest.param("L/14", 304_367_616, marks=pytest.mark.slow),
        pytest.param("g/14", 1_136_479_232, marks=pytest.mark.slow),
    ],
)
def test_true_sizes(name, count):
    """Without the mask token of training, one vector of the width, which transformers counts too."""
    tree = jax.eval_shape(lambda: dinov2.init(dinov2.VARIANTS[name], jax.random.key(0)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) == count


def test_patches_come_without_class_and_registers():
    """Two rows of two, at 28 pixels, whatever the image's size."""
    spec = dinov2.DINOv2Spec(24, 1, 2, image_size=28, num_register_tokens=3)
    params, image = dinov2.init(spec, jax.random.key(0)), np.arange(2 * 40 * 40 * 3).reshape(2, 40, 40, 3).astype(np.uint8)
    found = jax.jit(lambda image: dinov2.patches(spec, params, image, grid=2))(image)
    whole = jax.jit(lambda image: dinov2.tokens(spec, params, dinov2.preprocess(image, 28)))(image)
    assert (found.shape, whole.shape) == ((2, 4, 24), (2, 8, 24))
    np.testing.assert_allclose(found, whole[:, 4:], rtol=1e-6)


@pytest.mark.parametrize("shape", [(300, 300), (64, 64)], ids=["shrinks", "grows"])
def test_preprocess_resizes_as_pillow(shape):
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (shape[0] // 4, shape[1] // 4, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC), np.float32)
    found = dinov2.preprocess(image[None])[0] * jnp.asarray(dinov2.STD) + jnp.asarray(dinov2.MEAN)
    difference = np.abs(found * 255 - expected)
    assert difference.max() < 2.01, "a level along each axis, where Pillow's fixed-point weights round otherwise"
    assert difference.mean() < 0.01


def test_features_are_class_tokens_of_any_uint8_image():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: dinov2.init(TINY, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32), shapes)
    images = rng.integers(0, 256, (2, 20, 31, 3)).astype(np.uint8)
    run = jax.jit(dinov2.features, static_argnums=0)
    found, other = run(TINY, params, images), run(TINY, params, images[::-1])
    assert found.shape == (2, 24)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    np.testing.assert_allclose(other, found[::-1], atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 20, 28, 3), (1, 28, 28, 1), (28, 28, 3)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(BadInput, match=r"images for DINOv2.*multiples of 14"):
        dinov2.tokens(TINY, {}, jnp.zeros(shape))
