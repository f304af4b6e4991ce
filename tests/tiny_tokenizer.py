"""Tokenizers in the files that stand beside text encoders: one of T5's kind with 37 pieces, one of CLIP's kind."""

import json

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

MARKS, LETTERS, WORDS = ("<pad>", "</s>", "<unk>"), "abcdefghijklmnopqrstuvwxyzABC", ("▁", "▁a", "▁red", "▁cat", "▁two")
PIECES = [*((mark, 0.0) for mark in MARKS), *((letter, -4.0) for letter in LETTERS), *((word, -2.0) for word in WORDS)]


def write_tokenizer(folder):
    """Path of a new `tokenizer.json` in the folder, as transformers writes it of a T5's."""
    tokenizer = Tokenizer(models.Unigram(PIECES, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


START, END = "<|startoftext|>", "<|endoftext|>"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>"), ("'", "s</w>")]
CLIP_VOCABULARY = {
    token: i
    for i, token in enumerate(
        [*ALPHABET, *(f"{letter}</w>" for letter in ALPHABET), *(a + b for a, b in MERGES), START, END]
    )
}
"""As in CLIP's own: bytes, bytes at the end of a word, merged ones, marks."""


def write_clip_tokenizer(folder, **settings):
    """Write `vocab.json` and `merges.txt`, and of settings such as `pad_token` a `tokenizer_config.json`."""
    (folder / "vocab.json").write_text(json.dumps(CLIP_VOCABULARY))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, MERGES), ""]))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
