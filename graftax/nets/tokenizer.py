"""Texts as token ids, by the `tokenizer.json` that stands with a text encoder and the package tokenizers (extra `text`).

CLIP's, which are also there in other files, are in `graftax.nets.clip_tokenizer`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graftax.checkpoint.files import sha256
from graftax.checkpoint.members import shown
from graftax.errors import BadInput
from graftax.progress import say

FILE = "tokenizer.json"
HOW_TO_MAKE = "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it from spiece.model"
"""Folders from before `tokenizer.json` have only what this makes it from."""


class Tokenizer:
    """Texts of any length -> ids of one length: a start token where there is one, tokens, the end token, then padding.

    Attributes:
        sha256: of its file.
    """

    def __init__(
        self, path: str | Path, max_length: int, pad: int, eos: int, vocab_size: int, start: int | None = None,
        run: Any = None,
    ) -> None:  # fmt: skip
        """Read `path`, a `tokenizer.json`, or take `run`, what `opened` has made of it. Raises `BadInput` where it is none,
        or of another vocabulary than the encoder's, which has `vocab_size` tokens, and where the package is missing."""
        self._path, self._max_length, self._pad, self._eos = Path(path), max_length, pad, eos
        self._start = [] if start is None else [start]
        self._run = run or opened(self._path)
        self._told = False
        self.sha256 = sha256(self._path)
        largest = max(self._run.get_vocab().values(), default=-1)
        if not max(pad, eos) <= largest < vocab_size:
            expected = f"its last in {max(pad, eos)}..{vocab_size - 1}, as its text encoder has them"
            raise BadInput(f"{path}: tokens up to {largest}, expected {expected}")

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """ids and mask (b, max_length) int32 of texts that may be empty; the mask is 1 at tokens, start and end among them.

        Of a text that is too long the first tokens are kept, and its end token. The first time this is said.
        """
        found = self._encoded(texts)
        lengths = np.array([len(tokens) for tokens in found])
        first = len(self._start)
        most = self._max_length - 1 - first
        if (too_long := lengths > most).any() and not self._told:
            self._told, worst = True, int(lengths.argmax())
            say(
                f"prompts: {too_long.sum()} of {len(texts)} exceed {most} tokens and are cut, {shown(texts[worst])} by "
                f"{lengths[worst] - most}; later ones are cut without a word"
            )
        ids = np.full((len(texts), self._max_length), self._pad, np.int32)
        ends = first + np.minimum(lengths, most)
        for row, tokens, end in zip(ids, found, ends, strict=True):
            row[:end], row[end] = [*self._start, *tokens[: end - first]], self._eos
        return ids, (np.arange(self._max_length) <= ends[:, None]).astype(np.int32)

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, without any that mark its ends."""
        try:
            return [one.ids for one in self._run.encode_batch(list(texts), add_special_tokens=False)]
        except Exception as error:  # the library raises it of nothing more special
            raise BadInput(f"{self._path}: cannot encode the prompts ({shown(str(error))})") from None


def check_prompts(prompts: Any) -> list[str]:
    """`prompts` as a list. Raises `BadInput` on anything but a sequence of one or more texts, or on what is no Unicode."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
        what = "none" if isinstance(prompts, Sequence) and not prompts else f"a {type(prompts).__name__}"
        raise BadInput(f"prompts: got {what}, expected a list of texts")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise BadInput(f"prompts[{i}]: got {prompt!r}, expected a text")
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise BadInput(f"prompts[{i}]: {shown(prompt)} holds half a letter (a lone surrogate), expected Unicode")
    return list(prompts)


def opened(path: Path, make: Callable[[Any], Any] | None = None) -> Any:
    """The library's tokenizer, told to neither cut nor pad: that of `path`, or what `make` makes with the library of `path`
    and its neighbours. Raises `BadInput` where there is none in it, and where the package is missing."""
    if importlib.util.find_spec("tokenizers") is None:
        raise BadInput(f"{path}: needs the package tokenizers, expected: pip install 'graftax[text]'")
    import tokenizers

    try:
        found = make(tokenizers) if make else tokenizers.Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # what panics in the library is no `Exception`
        raise BadInput(f"{path}: not a tokenizer ({shown(str(error))})") from None
    found.no_truncation()
    found.no_padding()
    return found
