"""Prompts as token ids: those of transformers' own tokenizer; lengths, and files that are none."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_tokenizer import PIECES, write_tokenizer

from graftax.checkpoint.files import sha256
from graftax.errors import BadInput
from graftax.nets.tokenizer import Tokenizer, check_prompts

PROMPTS = ["a red cat", "", "two  red\tcats", "A Cat", "naïve ☃ cat", "a cat " * 30]
GIVEN = (12, 0, 1, 60)
"""Length, padding, end, size of the vocabulary."""


@pytest.fixture
def path(tmp_path):
    return write_tokenizer(tmp_path)


def test_as_transformers(path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.T5Tokenizer(vocab=PIECES, extra_ids=0)
    theirs.save_pretrained(path.parent / "theirs")
    expected = theirs(PROMPTS, max_length=12, padding="max_length", truncation=True, return_tensors="np")
    for file in (path, path.parent / "theirs" / "tokenizer.json"):
        ids, mask = Tokenizer(file, *GIVEN)(PROMPTS)
        np.testing.assert_array_equal(ids, expected["input_ids"])
        np.testing.assert_array_equal(mask, expected["attention_mask"])


def test_ends_and_padding(path, capsys):
    tokenizer = Tokenizer(path, *GIVEN)
    ids, mask = tokenizer(["", "a red cat"])
    assert (ids.dtype, mask.dtype) == (np.int32, np.int32)
    np.testing.assert_array_equal(ids[0], [1, *[0] * 11])
    np.testing.assert_array_equal(mask.sum(axis=1), [1, 4])
    assert ids[1, 3] == 1
    assert capsys.readouterr().err == ""
    assert tokenizer.sha256 == sha256(path)


def test_long_prompts_are_cut_which_is_said_once(path, capsys):
    tokenizer = Tokenizer(path, *GIVEN)
    whole, _ = Tokenizer(path, 100, *GIVEN[1:])(["a cat " * 30])
    exact, _ = tokenizer(["a cat " * 5 + "a"])  # 11 tokens and the end
    assert capsys.readouterr().err == ""
    ids, mask = tokenizer(["a cat " * 30, "a", "cat " * 20])
    np.testing.assert_array_equal(ids[0], [*whole[0, :11], 1])
    assert (mask[0].all(), mask[1].sum(), exact[0, -1]) == (True, 2, 1)
    said = capsys.readouterr().err
    assert "2 of 3 exceed 11 tokens and are cut, 'a cat a cat" in said
    assert "by 49;" in said
    assert said.count("\n") == 1
    tokenizer(["a cat " * 30])
    assert capsys.readouterr().err == ""


def test_one_token_is_the_end(path):
    ids, mask = Tokenizer(path, 1, *GIVEN[1:])(["a red cat"])
    assert (ids.tolist(), mask.tolist()) == ([[1]], [[1]])


@pytest.mark.parametrize(
    ("prompts", "word"),
    [("a cat", "a str"), ([], "none"), (None, "a NoneType"), ([b"a"], r"prompts\[0\]: got b'a'"),
     (["a", None], r"\[1\]: got None"), (["\ud800"], "lone surrogate")],
)  # fmt: skip
def test_what_is_no_list_of_texts(prompts, word):
    with pytest.raises(BadInput, match=word):
        check_prompts(prompts)
    assert check_prompts(("a", "b")) == ["a", "b"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[1]", b"hello", b"\xff\xfe\x00", b'{"version": "1.0", "model": {"type": "BPE"}}', b"null",
     b'{"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "c"},'
     b' "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}'],
)  # fmt: skip
def test_what_is_no_tokenizer(tmp_path, content):
    """The last one makes the library panic, which is no `Exception`."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="not a tokenizer") as refusal:
        Tokenizer(path, *GIVEN)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_another_vocabulary(path):
    with pytest.raises(BadInput, match=r"tokens up to \d+, expected its last in 1\.\.9"):
        Tokenizer(path, 12, 0, 1, 10)
    with pytest.raises(BadInput, match=r"expected its last in 50000\.\.50009"):
        Tokenizer(path, 12, 0, 50000, 50010)


def test_a_text_that_it_has_no_token_for(path):
    content = json.loads(path.read_text())
    content["model"] |= {"unk_id": None}
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="cannot encode the prompts"):
        Tokenizer(path, *GIVEN)(["☃"])


def test_without_the_package(path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"needs the package tokenizers, expected: pip install 'graftax\[text\]'"):
        Tokenizer(Path(path), *GIVEN)
