"""Samples drawn, written and judged; previews of a training run."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image

from graftax.data.config import DataConfig
from graftax.data.pixels import images
from graftax.diffusion import Sampling
from graftax.errors import BadInput
from graftax.evaluate.drawing import (
    ACCURACY,
    FRECHET,
    SampleConfig,
    balanced_labels,
    demo_judge,
    draw,
    draw_with,
    in_rows,
    write,
)
from graftax.evaluate.preview import preview
from graftax.models import Model
from graftax.testing import random_params, tiny_spec

CONFIG = SampleConfig(steps=3, batch_size=4, cfg_scale=2.0, seed=1)


@functools.cache
def model():
    spec = tiny_spec(depth=1, in_channels=1, num_classes=3)
    return Model(spec, random_params(spec, jax.random.key(0)))


LABELS = balanced_labels(6, 3)


@functools.cache
def drawn():
    return draw(model(), LABELS, CONFIG, show=False)


def test_settings_are_a_sampling_with_seed_and_batch_size():
    assert CONFIG.sampling == Sampling(sampler="ddim", steps=3, cfg_scale=2.0)
    assert str(CONFIG) == "DDIM, 3 steps, guidance 2 on the first 3 channels, seed 1"
    for fields, word in (({"batch_size": 0}, "batch_size: got 0"), ({"steps": 1}, "sampling steps: 1"), ({"eta": 2}, "eta")):
        with pytest.raises(BadInput, match=word):
            SampleConfig(**fields)


@pytest.mark.slow
def test_an_image_is_the_same_in_any_batch_up_to_rounding():
    assert drawn().shape == (6, 8, 8, 1)
    whole = draw(model(), LABELS, SampleConfig(steps=3, batch_size=100, cfg_scale=2.0, seed=1), show=False)
    np.testing.assert_allclose(drawn(), whole, rtol=1e-5, atol=1e-5)
    assert (
        np.abs(drawn() - draw(model(), LABELS, SampleConfig(steps=3, batch_size=4, cfg_scale=2.0), show=False)).max() > 0.1
    )
    np.testing.assert_array_equal(draw_with(model(), {"y": LABELS}, CONFIG, show=False), drawn())  # equal programs


def test_pictures_arrays_and_latents_are_written(tmp_path):
    def decode(arrays):
        return np.clip(arrays, -1, 1)

    layout = in_rows(["a", "b"])
    write(tmp_path / "a.png", drawn(), decode, layout, labels=LABELS)
    assert Image.open(tmp_path / "a.png").size[0] > Image.open(tmp_path / "a.png").size[1] > 16
    write(tmp_path / "a.npz", drawn(), decode, layout, labels=LABELS)
    write(tmp_path / "b.npz", drawn(), None, layout, labels=LABELS)
    with np.load(tmp_path / "a.npz") as pictures, np.load(tmp_path / "b.npz") as latents:
        assert (pictures["images"].dtype, pictures["images"].shape) == (np.uint8, (6, 8, 8, 1))
        np.testing.assert_array_equal(latents["latents"], drawn())
        assert pictures["labels"].tolist() == latents["labels"].tolist() == LABELS.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.png", "b.npz"]


@pytest.mark.slow
def test_the_judge_tells_garments_from_noise():
    data = images.load(
        DataConfig(source="fashion_mnist#test", subset="10 per class", test="fashion_mnist", test_subset="10")
    )
    judge = demo_judge(data.train)
    static = np.random.default_rng(0).standard_normal(data.train.shape)
    real, noise = (judge.score(pixels, data.train_labels) for pixels in (data.train, static))
    assert real.count == 100
    assert real[ACCURACY] > 0.8 > 0.5 > noise[ACCURACY]
    assert real[FRECHET] < 1e-3 < 1 < noise[FRECHET]


def test_a_preview_is_a_grid_of_a_models_samples():
    data = images.load(DataConfig(source="fashion_mnist#test", size=8 * 4, subset="1 per class", test="fashion_mnist"))
    assert preview(0, model().spec, data) is None
    watch = preview(4, model().spec, data)
    assert watch is not None
    (name, grid), *_ = watch(model()).items()
    assert (name, grid.dtype, grid.ndim) == ("samples", np.uint8, 3)
    np.testing.assert_array_equal(watch(model())["samples"], grid)
    given = images.load(DataConfig(source="fashion_mnist#test", subset="1 per class", test="fashion_mnist"))
    strange = tiny_spec(depth=1, in_channels=5)
    with pytest.raises(BadInput, match="preview: no decoder for latents of 8x8x5"):
        preview(4, strange, type(given)(DataConfig(source="x", latents="given"), given.raw_train, given.raw_test))
