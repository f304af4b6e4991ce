import json
from importlib import resources

import numpy as np
import pytest

from graftax.data.scenes.sample import scene
from graftax.data.scenes.tokens import ids, tokenizer_json
from graftax.data.scenes.vocabulary import LENGTH, WORDS
from graftax.errors import BadInput


def test_captions_become_ids_ended_and_padded() -> None:
    found = ids(["Two red hearts  left of a cat", ""])
    assert found.dtype == np.int32
    assert found.shape == (2, LENGTH)
    words = [WORDS[i] for i in found[0, :8]]
    assert words == ["two", "red", "hearts", "left", "of", "a", "cat", "[END]"]
    np.testing.assert_array_equal(found[0, 8:], 0)
    np.testing.assert_array_equal(found[1], [2] + [0] * (LENGTH - 1))  # a token is left to attend to


def test_the_shipped_tokenizer_is_made_of_the_vocabulary_and_agrees() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    text = resources.files("graftax.data.scenes").joinpath("tokenizer.json").read_text(encoding="utf-8")
    assert json.loads(text) == tokenizer_json()
    tokenizer = tokenizers.Tokenizer.from_str(text)
    captions = ["", "Two RED hearts  left of a cat", *(str(scene(i).caption) for i in range(300))]
    encoded = tokenizer.encode_batch(captions)
    np.testing.assert_array_equal([each.ids for each in encoded], ids(captions))
    np.testing.assert_array_equal([each.attention_mask for each in encoded], ids(captions) != 0)
    assert tokenizer.encode("a zebra").ids[1] == WORDS.index("[UNK]")


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a red haert", "unknown word 'haert', expected words of scenes; did you mean 'heart'"),
        ("a [PAD]", r"unknown word '\[pad\]'"),
        ("cat " * 16, "16 words, expected at most 15"),
    ],
)
def test_other_words_and_long_captions_are_refused(caption: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ids(["a cat", caption])


def test_every_word_is_there_once() -> None:
    assert len(set(WORDS)) == len(WORDS)
    assert all(word == word.lower() for word in WORDS[3:])
