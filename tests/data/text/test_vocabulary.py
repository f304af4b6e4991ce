"""Closed vocabularies by name, and texts read once and kept in memory."""

import jax
import numpy as np
import pytest
from stand_in import LENGTH, StandIn, expected, number

from graftax.backbones.pixart import pixart_spec
from graftax.checkpoint import save_model
from graftax.data.scenes.vocabulary import WORDS
from graftax.data.text import memory
from graftax.data.text.memory import ReadTexts
from graftax.data.text.vocabulary import find_words, words_of
from graftax.errors import BadInput
from graftax.models.backbone import find
from graftax.testing import random_params, tiny_spec

SIZES = {"input_size": 4, "patch_size": 2, "hidden_size": 16, "depth": 1, "num_heads": 2, "text_width": 8, "text_tokens": 16}


def reader(**changes):
    words = {"words": len(WORDS), "text_blocks": 1, "text_heads": 2, "vocabulary": "scenes"}
    return pixart_spec(**SIZES, **{**words, **changes})


def test_a_models_words_are_found_by_name():
    assert len(words_of(reader())) == len(WORDS)
    assert reader() != reader(vocabulary="")
    for spec, word in (
        (reader(vocabulary=""), "vocabulary: got '', expected one of .*which the model does not name"),
        (reader(vocabulary="scene"), "did you mean 'scenes'"), (reader(words=9), "78 words, the model reads 9"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=word):
            words_of(spec)
    with pytest.raises(BadInput, match="expected a name, of a model that reads words"):
        find(pixart_spec(**SIZES)).check(pixart_spec(**SIZES).with_frame(vocabulary="scenes"))


def test_folders_of_other_models(tmp_path):
    for name, spec, word in (
        ("classes", tiny_spec(depth=1), "a model of 10 classes"),
        ("embedded", pixart_spec(**SIZES), "a model of texts that are embedded already"),
    ):
        save_model(tmp_path / name, spec, random_params(spec, jax.random.key(0)), {})
        with pytest.raises(BadInput, match=word):
            find_words(tmp_path / name)
    (tmp_path / "classes" / "graftax.json").write_text("{}")
    with pytest.raises(BadInput, match=r"graftax\.json: damaged"):
        find_words(tmp_path / "classes")
    assert find_words(tmp_path) is None


def test_texts_are_read_once(monkeypatch):
    monkeypatch.setattr(memory, "PER_CALL", 2)
    encoder = StandIn()
    texts = ReadTexts(encoder, ["", "a cat", "two dogs", "a cat"])
    assert encoder.calls == [["", "a cat"], ["two dogs", ""]]
    found = texts(["two dogs", ""])
    np.testing.assert_array_equal(found["text_mask"].sum(1), [3, 1])
    np.testing.assert_array_equal(found["text"][0, :3], expected("two dogs"))
    assert not found["text"][0, 3:].any()
    ids = ReadTexts(StandIn(ids=True), ["a cat"])(["a cat"])
    assert ids.keys() == {"text"}
    assert ids["text"].tolist() == [[number("a"), number("cat"), number("</s>")] + [0] * (LENGTH - 3)]
