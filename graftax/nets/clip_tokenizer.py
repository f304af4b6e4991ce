"""CLIP's texts as token ids, by `tokenizer.json`, or by the `vocab.json` and `merges.txt` that older folders have instead.

Texts are put in lower case and split into words, words into pieces of bytes that are merged pair by pair; a word's last
piece ends in "</w>". Every text is put between a start and an end token.

Sources: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (arXiv 1508.07909); how words are
split: simple_tokenizer.py of github.com/openai/CLIP; how marks are named: transformers' CLIPTokenizer.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from graftax.checkpoint.files import sha256
from graftax.checkpoint.members import shown
from graftax.errors import BadInput
from graftax.nets.tokenizer import FILE, Tokenizer, opened

VOCABULARY, MERGES = "vocab.json", "merges.txt"
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
"""Where a folder says which tokens its marks are, the first of them that names one."""

MARKS = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
"""What they are where it does not say. Stable Diffusion's model G pads with "!"."""

WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""Words: marks, English endings, letters, one digit, all else that is no space."""


def clip_tokenizer(folder: Path, max_length: int, vocab_size: int) -> Tokenizer | None:
    """The tokenizer in `folder`, None where there is none: texts -> `max_length` ids below `vocab_size`.

    Marks in a text are the tokens of that name, padding's too, as in transformers: where "!" pads, a text's "!" is that.
    Raises `BadInput` where files are damaged or one of two is missing, and where there is no room for start and end.
    """
    files = [folder / FILE] if (folder / FILE).is_file() else [folder / VOCABULARY, folder / MERGES]
    if not any(file.is_file() for file in files):
        return None
    if max_length < 2:
        raise BadInput(f"max_length: got {max_length}, expected at least 2: CLIP's texts have a start and an end")
    if missing := [file for file in files if not file.is_file()]:
        raise BadInput(f"{missing[0]}: missing, expected it beside {' and '.join({VOCABULARY, MERGES} - {missing[0].name})}")
    run = opened(files[0]) if len(files) == 1 else opened(files[0], lambda library: _built(library, *map(str, files)))
    marks = _marks(folder)
    ids = {name: run.token_to_id(mark) for name, mark in marks.items()}
    if unknown := [name for name, token in ids.items() if token is None]:
        raise BadInput(f"{files[0]}: no token {shown(marks[unknown[0]])}, expected that of {unknown[0]}")
    run.add_special_tokens(list(dict.fromkeys(marks.values())))
    start, end, pad = (ids[name] for name in MARKS)
    found = Tokenizer(files[0], max_length, pad, end, vocab_size, start, run)
    parts = [*map(sha256, files), *ids.values()]
    found.sha256 = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return found


def _built(library: Any, vocabulary: str, merges: str) -> Any:
    """The library's tokenizer of a vocabulary and the pairs that are merged."""
    normalizers, splits = library.normalizers, library.pre_tokenizers
    end = MARKS["eos_token"]
    run = library.Tokenizer(library.models.BPE.from_file(vocabulary, merges, end_of_word_suffix="</w>", unk_token=end))
    spaces = normalizers.Replace(library.Regex(r"\s+"), " ")
    run.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = splits.Split(library.Regex(WORDS), behavior="removed", invert=True)
    run.pre_tokenizer = splits.Sequence([words, splits.ByteLevel(add_prefix_space=False)])
    return run


def _marks(folder: Path) -> dict[str, str]:
    """The text of each mark."""
    found = [_settings(folder / name) for name in SETTINGS if (folder / name).is_file()]
    marks = {}
    for name, usual in MARKS.items():
        mark = next((one[name] for one in found if one.get(name) is not None), usual)
        mark = mark.get("content") if isinstance(mark, dict) else mark
        if not isinstance(mark, str) or not mark:
            raise BadInput(f"{folder}: {name} {shown(mark)}, expected a text in {' or '.join(SETTINGS)}")
        marks[name] = mark
    return marks


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise BadInput(f"{path}: no JSON ({shown(repr(error))})") from None
    if not isinstance(found, dict):
        raise BadInput(f"{path}: a {type(found).__name__}, expected an object of settings")
    return found
