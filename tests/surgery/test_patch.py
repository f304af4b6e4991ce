"""Tokens of another size: weights rearranged exactly, resampled exactly for resized images, and left to least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.backbones.embedders import PatchEmbed, image_of
from graftax.errors import BadInput
from graftax.models import Model
from graftax.ops.base import call
from graftax.surgery import apply_edit, patch
from graftax.testing import assert_same_leaves, random_params, tiny_spec

SPEC = tiny_spec(depth=1, hidden_size=16, num_heads=2)
MODEL = Model(SPEC, random_params(SPEC, jax.random.key(0)))
X = np.random.default_rng(0).standard_normal((2, 8, 8, 4), np.float32)
T, Y = np.array([5, 400]), np.array([0, 4])


def folded(x, factor):
    """(b, h, w, c) -> (b, h / f, w / f, f f c), [row, column, channel]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // factor, factor, w // factor, factor, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // factor, w // factor, -1)


def enlarged(x, factor):
    return np.repeat(np.repeat(x, factor, 1), factor, 2)


def test_latents_whose_pixels_lie_in_channels_keep_the_function():
    student, report = apply_edit(MODEL, patch(1, channels=16))
    assert (report.effect, student.spec.image_shape, student.spec.sizes) == ("kept", (4, 4, 16), SPEC.sizes)
    eps, variance = np.split(np.asarray(MODEL(X, T, Y)), 2, axis=-1)
    out = student(folded(X, 2), T, Y)
    np.testing.assert_allclose(out, np.concatenate([folded(eps, 2), folded(variance, 2)], -1), atol=1e-6)
    assert_same_leaves(MODEL.params["blocks"], student.params["blocks"])


@pytest.mark.parametrize("size", [1, 4])
def test_tokens_are_those_of_resized_images(size):
    """Finer ones of an image those of the enlarged image before; coarser ones of an enlarged image those before."""
    student, report = apply_edit(MODEL, patch(size))
    assert (report.effect, student.spec.image_shape, student.spec.sizes.grid) == ("changed", (8, 8, 4), (8 // size,) * 2)
    before, after = (X, enlarged(X, 2)) if size > 2 else (enlarged(X, 2), X)
    tokens = [
        np.asarray(call(PatchEmbed(16, p), model.params["x_embedder"], x))
        for p, model, x in ((2, MODEL, before), (size, student, after))
    ]
    np.testing.assert_allclose(*tokens, atol=1e-5)
    h = np.random.default_rng(1).standard_normal((1, 4, 16), np.float32)
    old, new = (h @ m.params["final"]["linear"]["kernel"] + m.params["final"]["linear"]["bias"] for m in (MODEL, student))
    images = [np.asarray(image_of(old, (2, 2), 2)), np.asarray(image_of(new, (2, 2), size))]
    pooled = images[0].reshape(1, 2, 2, 2, 2, 8).mean((2, 4))
    np.testing.assert_allclose(images[1], pooled if size == 1 else enlarged(images[0], 2), atol=1e-6)


def test_positions_lie_where_they_were():
    """A table that is linear in the place stays so, apart from its border."""
    line = np.broadcast_to(np.arange(4.0)[:, None, None], (4, 4, 16)).reshape(1, 16, 16)
    student, _ = apply_edit(MODEL.replace(params={**MODEL.params, "pos_embed": jnp.asarray(line)}), patch(1))
    rows = np.asarray(student.params["pos_embed"]).reshape(8, 8, 16)[:, 3, 0]
    np.testing.assert_allclose(rows[1:-1], (np.arange(8.0) + 0.5)[1:-1] / 2 - 0.5, atol=1e-6)


def test_the_same_size_is_the_same_model():
    student, report = apply_edit(MODEL, patch(2))
    assert (report.effect, student.spec) == ("kept", SPEC)
    np.testing.assert_array_equal(student.params["x_embedder"]["kernel"], MODEL.params["x_embedder"]["kernel"])


def test_other_latents_begin_at_zero():
    student, report = apply_edit(MODEL, patch(1, channels=6))
    assert (report.effect, student.spec.image_shape) == ("changed", (4, 4, 6))
    assert not np.any(student.params["x_embedder"]["kernel"])
    assert not np.any(student.params["final"]["linear"]["kernel"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: patch(0), "patch size: got 0, expected 1 or more"),
        (lambda: patch(1, channels=0), "patch channels: got 0"),
        (lambda: patch(3), r"patch\(3\): expected a divisor or a multiple of 2 that divides latents of 8x8"),
        (lambda: patch(1.5), r"patch: got 1\.5, expected an integer"),
    ],
)
def test_what_cannot_be_cut_is_refused(edit, message):
    with pytest.raises(BadInput, match=message):
        apply_edit(MODEL, edit())
