"""Folders of samples: the same images whatever interrupts, batches or spreads them, and nothing mixed up."""

import json

import jax
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.evaluate.protocol import Protocol
from graftax.evaluate.sample_set import draw_set, open_set, write_npz
from graftax.models import Model
from graftax.testing import random_params, tiny_spec

PROTOCOL = Protocol(steps=4, count=22, labels="balanced", cfg_scale=2.0, seed=5)


def model() -> Model:
    spec = tiny_spec()
    return Model(spec, random_params(spec, jax.random.key(0)))


def decode(latents: np.ndarray) -> np.ndarray:
    return np.tanh(latents[..., :3])


def images_of(found) -> np.ndarray:
    return np.concatenate([images for images, _ in found])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return draw_set(model(), PROTOCOL, decode, tmp_path_factory.mktemp("whole"), identity="m", part=8, show=False)


def test_a_set_holds_every_image_and_its_label(whole):
    assert images_of(whole).shape == (22, 8, 8, 3)
    assert images_of(whole).std() > 10
    assert np.concatenate([labels for _, labels in whole]).tolist() == [i % 10 for i in range(22)]


def test_an_interrupted_set_ends_as_an_undisturbed_one(whole, tmp_path):
    drawn = []

    def failing(latents: np.ndarray) -> np.ndarray:
        drawn.append(1)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return decode(latents)

    with pytest.raises(KeyboardInterrupt):
        draw_set(model(), PROTOCOL, failing, tmp_path, identity="m", part=8, show=False)
    assert len(open_set(tmp_path).missing()) == 2
    again = draw_set(model(), PROTOCOL, decode, tmp_path, identity="m", part=8, show=False)
    np.testing.assert_array_equal(images_of(again), images_of(whole))


def test_images_do_not_depend_on_the_part(whole, tmp_path):
    other = draw_set(model(), PROTOCOL, decode, tmp_path, identity="m", part=11, show=False)
    gap = np.abs(images_of(other).astype(int) - images_of(whole))
    assert gap.max() <= 1  # compiled for another shape: rounding of floats may tip a byte


def test_the_file_is_what_adms_evaluator_reads(whole, tmp_path):
    with np.load(write_npz(whole, tmp_path / "samples.npz"), allow_pickle=False) as stored:
        assert stored.files == ["arr_0", "arr_1"]
        np.testing.assert_array_equal(stored["arr_0"], images_of(whole))
        assert stored["arr_1"].tolist() == [i % 10 for i in range(22)]


def test_other_models_protocols_and_parts_are_refused(whole):
    def draw(protocol=PROTOCOL, identity="m", part=8):
        return draw_set(model(), protocol, decode, whole.folder, identity=identity, part=part, show=False)

    before = {file: file.read_bytes() for file in whole.folder.rglob("*.npz")}
    with pytest.raises(BadInput, match="model m, expected n"):
        draw(identity="n")
    with pytest.raises(BadInput, match="steps: 4"):
        draw(Protocol(**{**json.loads(PROTOCOL.to_json()), "steps": 5}))
    with pytest.raises(BadInput, match="8 images per part"):
        draw(part=11)
    draw(Protocol(**{**json.loads(PROTOCOL.to_json()), "reference": "other"}))  # only its scores would differ
    assert {file: file.read_bytes() for file in whole.folder.rglob("*.npz")} == before


def test_missing_parts_and_folders_are_named(whole, tmp_path):
    with pytest.raises(BadInput, match=r"no protocol\.json"):
        open_set(tmp_path)
    (tmp_path / "protocol.json").write_text((whole.folder / "protocol.json").read_text())
    with pytest.raises(BadInput, match="3 of 3 parts missing"):
        write_npz(open_set(tmp_path))
