"""CLIP's prompts as token ids: those of transformers' own tokenizer, from either kind of files; files that are none."""

import json

import numpy as np
import pytest
from tiny_tokenizer import ALPHABET, CLIP_VOCABULARY, END, MERGES, START, write_clip_tokenizer

from graftax.errors import BadInput
from graftax.nets.clip_tokenizer import clip_tokenizer

PROMPTS = [
    "a red cat", "", "  A  Red\tCAT's 42 cats!? ", "naïve ☃ e\u0301", f"cat {END} cat", "a cat, " * 20, "red!!! !",
    "dog'S_x",
]  # fmt: skip
SIZE = len(CLIP_VOCABULARY)


@pytest.fixture
def folder(tmp_path):
    write_clip_tokenizer(tmp_path)
    return tmp_path


@pytest.mark.parametrize("settings", [{}, {"pad_token": "!"}], ids=["end pads", "! pads"])
def test_as_transformers(tmp_path, settings):
    """From vocabulary and merges as from `tokenizer.json`, whose settings transformers writes."""
    transformers = pytest.importorskip("transformers")
    write_clip_tokenizer(tmp_path, **settings)
    theirs = transformers.CLIPTokenizer(vocab=CLIP_VOCABULARY, merges=MERGES, **settings)
    theirs.save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "tokenizer.json").is_file()
    expected = theirs(PROMPTS, max_length=20, padding="max_length", truncation=True, return_tensors="np")
    for place in (tmp_path, tmp_path / "theirs"):
        ids, mask = clip_tokenizer(place, 20, SIZE)(PROMPTS)
        np.testing.assert_array_equal(ids, expected["input_ids"])
        if not settings:  # transformers masks what stands for padding, an end token or not
            np.testing.assert_array_equal(mask.sum(axis=1), [5, 2, *mask[2:].sum(axis=1)])


def test_start_end_and_padding(folder):
    ids, mask = clip_tokenizer(folder, 7, SIZE)(["", "a red cat", "cat " * 9])
    start, end, cat = (CLIP_VOCABULARY[token] for token in (START, END, "cat</w>"))
    np.testing.assert_array_equal(ids[0], [start, *[end] * 6])
    np.testing.assert_array_equal(ids[1], [start, CLIP_VOCABULARY["a</w>"], CLIP_VOCABULARY["red</w>"], cat, *[end] * 3])
    np.testing.assert_array_equal(ids[2], [start, *[cat] * 5, end])
    np.testing.assert_array_equal(mask.sum(axis=1), [2, 5, 7])


def test_the_hash_is_of_files_and_marks(folder):
    first = clip_tokenizer(folder, 7, SIZE).sha256
    assert first == clip_tokenizer(folder, 9, SIZE).sha256
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "!"}}))
    second = clip_tokenizer(folder, 7, SIZE)
    assert second([""])[0][0, -1] == CLIP_VOCABULARY["!"]
    (folder / "merges.txt").write_text("#version: 0.2\nc a\n")
    assert len({first, second.sha256, clip_tokenizer(folder, 7, SIZE).sha256}) == 3


def test_a_folder_without_one(tmp_path):
    assert clip_tokenizer(tmp_path, 7, SIZE) is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda folder: (folder / "merges.txt").unlink(), "merges.txt: missing, expected it beside vocab.json"),
        (lambda folder: (folder / "vocab.json").unlink(), "vocab.json: missing, expected it beside merges.txt"),
        (lambda folder: (folder / "vocab.json").write_text("[]"), "not a tokenizer"),
        (lambda folder: (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(ALPHABET)})),
         "not a tokenizer|no token"),
        (lambda folder: (folder / "merges.txt").write_text("#version: 0.2\nx y\n"), "not a tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json: not a tokenizer"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{"), "no JSON"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "a list, expected an object"),
        (lambda folder: (folder / "tokenizer_config.json").write_text('{"pad_token": 3}'), "pad_token int, expected a text"),
        (lambda folder: (folder / "tokenizer_config.json").write_text('{"pad_token": "<x>"}'), "no token '<x>', expected"),
    ],
    ids=["no merges", "no words", "a list", "no marks", "strange merges", "empty", "damaged", "list", "number", "unknown"],
)  # fmt: skip
def test_damaged_folders(folder, change, word):
    change(folder)
    with pytest.raises(BadInput, match=word) as refusal:
        clip_tokenizer(folder, 7, SIZE)
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_no_room_and_another_vocabulary(folder):
    with pytest.raises(BadInput, match="max_length: got 1, expected at least 2"):
        clip_tokenizer(folder, 1, SIZE)
    with pytest.raises(BadInput, match=r"tokens up to \d+, expected its last in"):
        clip_tokenizer(folder, 7, SIZE - 1)
