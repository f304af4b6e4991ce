"""Captions as ids, without a tokenizer's library: the vocabulary is closed, a word is a token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from graftax.data.scenes.vocabulary import END, LENGTH, PAD, UNKNOWN, WORDS
from graftax.errors import BadInput, did_you_mean

_IDS = {word: i for i, word in enumerate(WORDS)}
_SPECIAL = (PAD, UNKNOWN, END)


def ids(captions: Sequence[str]) -> np.ndarray:
    """Ids (b, 16) int32 of captions, each ended by [END] (2) and padded with [PAD] (0); the empty caption is [END] alone.

    Raises `BadInput` naming a word that is not in the vocabulary, and where a caption is too long.
    """
    out = np.zeros((len(captions), LENGTH), np.int32)
    for row, text in zip(out, captions, strict=True):
        words = text.lower().split()
        if len(words) >= LENGTH:
            raise BadInput(f"caption {text!r}: {len(words)} words, expected at most {LENGTH - 1}")
        row[: len(words) + 1] = [*(_id(word, text) for word in words), _IDS[END]]
    return out


def _id(word: str, text: str) -> int:
    if word not in _IDS or word in _SPECIAL:
        raise BadInput(f"caption {text!r}: unknown word {word!r}, expected words of scenes{did_you_mean(word, WORDS[3:])}")
    return _IDS[word]


def tokenizer_json() -> dict[str, Any]:
    """The same as `ids`, but with [UNK] for unknown words, for the `tokenizers` library: the shipped tokenizer.json."""
    special = [
        {"id": _IDS[word], "content": word, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for word in _SPECIAL
    ]  # fmt: skip
    end = {"id": END, "ids": [_IDS[END]], "tokens": [END]}
    text, stop = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": END, "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": {
            "strategy": {"Fixed": LENGTH}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": _IDS[PAD],
            "pad_type_id": 0, "pad_token": PAD,
        },
        "added_tokens": special,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing", "single": [text, stop], "pair": [text, second, stop], "special_tokens": {END: end},
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": _IDS, "unk_token": UNKNOWN},
    }  # fmt: skip


class SceneWords:
    """Scenes' words in the place of a text encoder (`graftax.data.text.encoding.TextEncoder`)."""

    def __len__(self) -> int:
        """How many words there are."""
        return len(WORDS)

    @property
    def sha256(self) -> str:
        """Of the vocabulary and its rules."""
        return hashlib.sha256(json.dumps(tokenizer_json()).encode()).hexdigest()

    def __call__(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """{"text": ids (b, 16)} of the prompts."""
        return {"text": ids(prompts)}
