"""Scenes as configs name them: pictures and words in memory."""

import numpy as np
import pytest

from graftax.data.config import DataConfig
from graftax.data.pixels import images
from graftax.data.scenes import ids, render, scene
from graftax.data.scenes.memory import HELD_OUT, scenes_in_memory
from graftax.errors import BadInput


def test_scenes_in_memory_are_the_scenes():
    found = scenes_in_memory(9, "heldout", seed=3)
    expected = [scene(i, "heldout", 3) for i in range(9)]
    np.testing.assert_array_equal(found.images, [render(each) for each in expected])
    np.testing.assert_array_equal(found.text, ids([str(each.caption) for each in expected]))
    assert len({found.digest, scenes_in_memory(9, "heldout").digest, found.take(np.arange(8)).digest}) == 3
    for arguments, message in (((0,), "count 0"), ((1, "test"), "split: got 'test'"), ((1, "train", -1), "seed -1")):
        with pytest.raises(BadInput, match=message):
            scenes_in_memory(*arguments)


def test_batches_of_a_config_are_pictures_with_words():
    data = images.load(DataConfig(source="scenes", size=64, limit=20))
    batch = next(data.batches(8, seed=0))
    assert {name: array.shape for name, array in batch.items()} == {
        "image": (8, 64, 64, 3), "text": (8, 16), "against": (8, 16),
    }  # fmt: skip
    held_out = data.heldout
    assert len(held_out["text"]) == HELD_OUT
    np.testing.assert_array_equal(held_out["text"][7], ids([str(scene(7, "heldout").caption)])[0])
    np.testing.assert_allclose(held_out["image"][7], render(scene(7, "heldout")) / 127.5 - 1, atol=1e-6)


def test_mirrored_scenes_are_refused():
    with pytest.raises(BadInput, match=r"transform: got 'flip', expected 'none': captions say"):
        images.load(DataConfig(source="scenes", size=64, limit=20, transform="flip"))
