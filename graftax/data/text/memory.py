"""Prompts that a text encoder has read, kept in memory, so that it need not be: T5-XXL is larger than what it serves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graftax.data.text.encoding import TextEncoder, encoded
from graftax.data.text.store import TextRow, padded
from graftax.progress import Progress

PER_CALL = 16
"""Prompts that are encoded at once."""


class ReadTexts:
    """What an encoder gives for prompts, of these alone: an encoder without one. Padding is not kept."""

    def __init__(self, encoder: TextEncoder, texts: Sequence[str]) -> None:
        """Encode each distinct text once, in calls of one shape. Raises `BadInput` as the encoder does."""
        self.sha256 = encoder.sha256
        self._rows: dict[str, TextRow] = {}
        distinct = list(dict.fromkeys(texts))
        size = min(PER_CALL, len(distinct))
        with Progress(len(distinct), "encode", unit="prompt", show=len(distinct) > size) as progress:
            for part in (distinct[i : i + size] for i in range(0, len(distinct), size)):
                found = encoded(encoder, [*part, *[""] * (size - len(part))])
                self._length, self._masked = found.length, found.masked
                self._rows |= zip(part, found.rows, strict=False)
                progress.advance(len(part))

    def __call__(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Conditions (b, ...) of prompts that were encoded: what the encoder gave of `text` (b, m, d) or token ids (b, m),
        `text_mask` (b, m) bool and `pooled` (b, c), zeros in place of padding."""
        return padded([self._rows[prompt] for prompt in prompts], self._length, masked=self._masked)
