"""Text stores: the embedding of every distinct caption once, without padding, so that no training step runs a text encoder.

    FOLDER/manifest.json                      encoder, lengths, checksums
    FOLDER/captions.jsonl                     the captions, one JSON string a line, by their number
    FOLDER/text-00000-of-00002.array_record   a record is (tokens, d), or (tokens,) where the encoder gives token ids

The last caption is the empty one, which guidance needs. `graftax encode --text` writes such stores
(`graftax.data.text.encoding`).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from graftax.checkpoint.hub import fetched
from graftax.data.shards import Shard, ShardedManifest, fetch, open_rows, read_sharded
from graftax.errors import BadInput
from graftax.spec import ModelSpec

CAPTIONS = "captions.jsonl"
DTYPES = ("bfloat16", "float16", "float32")
IDS = "int32"
"""Type of a store of token ids."""


@dataclass(frozen=True, kw_only=True)
class TextManifest(ShardedManifest):
    """What is in a text store and where it comes from.

    Attributes:
        source: file or folder of the captions, as given.
        count: captions, the empty one among them.
        captions_sha256: of `captions.jsonl`.
        encoder: folder of the text encoder, as given.
        encoder_sha256: of what it computes with.
        length: tokens to which a batch is padded; the encoder gives no more.
        tail: (d,) for embeddings, () for token ids.
        dtype: of the records.
        shard_size: captions per shard.
        shards: None until all of them are there.
    """

    format: ClassVar[str] = "graftax text 1"
    what: ClassVar[str] = "text store"
    stem: ClassVar[str] = "text"
    verb: ClassVar[str] = "graftax encode"
    free: ClassVar[tuple[str, ...]] = ("source", "encoder", "shards")
    beside: ClassVar[tuple[str, ...]] = (CAPTIONS,)
    source: str
    count: int
    captions_sha256: str
    encoder: str
    encoder_sha256: str
    length: int
    tail: tuple[int, ...]
    dtype: str
    shard_size: int
    shards: tuple[Shard, ...] | None = None

    @property
    def contents(self) -> str:
        """What the store holds, in words."""
        shape = ", ".join(map(str, ("<=", self.length, *self.tail))).replace("<=, ", "<= ")
        return f"{self.count:,} captions ({shape})"


class TextStore:
    """A finished text store."""

    def __init__(self, folder: Path, manifest: TextManifest, rows: Any) -> None:
        self.folder, self.manifest = folder, manifest
        self._rows = rows

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def digest(self) -> str:
        """SHA-256 over the manifest, which has those of captions and embeddings."""
        return hashlib.sha256(self.manifest.to_json().encode()).hexdigest()

    @property
    def empty(self) -> int:
        """Number of the empty caption."""
        return len(self) - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (m, d), or (m,) of token ids, of one caption in a batch."""
        return self.manifest.length, *self.manifest.tail

    @functools.cached_property
    def captions(self) -> tuple[str, ...]:
        """All captions by number. Raises `BadInput` where their file is not as it was."""
        path = self.folder / CAPTIONS
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != self.manifest.captions_sha256:
            raise BadInput(f"text store {self.folder}: {CAPTIONS} is missing or damaged, expected it as it was written")
        return tuple(map(json.loads, data.splitlines()))

    def numbers(self, captions: Sequence[tuple[str, ...]], what: str) -> list[tuple[int, ...]]:
        """The numbers of every record's captions. Raises `BadInput` where some are not here, naming `what` has them."""
        known = {caption: number for number, caption in enumerate(self.captions)}
        absent = [caption for own in captions for caption in own if caption not in known]
        if absent:
            total, first = sum(map(len, captions)), absent[0][:60]
            raise BadInput(
                f"{what}: {len(absent)} of {total} captions are not in text store {self.folder}, the first {first!r}"
            )
        return [tuple(known[caption] for caption in own) for own in captions]

    def read(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """{"text": (b, m, d) in the store's type, "text_mask": (b, m) bool, true at tokens} of captions (b,).

        Behind a caption's tokens are zeros. Of token ids {"text": (b, m) int32} alone: there 0 says what is padding. Raises
        `BadInput` where a record is damaged.
        """
        dtype = jnp.dtype(self.manifest.dtype)
        rows = fetch(self._rows, numbers, self.folder, self.manifest)
        return padded([np.frombuffer(row, dtype).reshape(-1, *self.manifest.tail) for row in rows], self.manifest.length)


def padded(texts: Sequence[np.ndarray], length: int) -> dict[str, np.ndarray]:
    """{"text": (b, length, d), "text_mask": (b, length) bool, true at tokens} of embeddings (k, d), k <= length, zeros
    behind them; {"text": (b, length)} alone of token ids (k,)."""
    text = np.zeros((len(texts), length, *texts[0].shape[1:]), texts[0].dtype)
    for row, tokens in zip(text, texts, strict=True):
        row[: len(tokens)] = tokens
    if text.ndim == 2:
        return {"text": text}
    return {"text": text, "text_mask": np.arange(length) < np.array([len(tokens) for tokens in texts])[:, None]}


def open_store(folder: str | Path) -> TextStore:
    """The text store in `folder`. Raises `BadInput` where there is none, it is unfinished, or a shard is missing or cut."""
    folder = fetched(folder, whole=True)
    manifest = read_sharded(folder, TextManifest)
    return TextStore(folder, manifest, open_rows(folder, manifest))


def check_text(store: TextStore, spec: ModelSpec) -> None:
    """Raise `BadInput` unless a model of `spec` takes texts, so many tokens of this form, and embeddings of this width."""
    if spec.classes:
        raise BadInput(f"text store {store.folder}: a model that knows {spec.classes} classes takes no captions")
    if store.manifest.length > (most := spec.sizes.context or spec.sizes.text):
        raise BadInput(f"text store {store.folder}: texts of {store.manifest.length} tokens, the model takes up to {most}")
    forms = {True: "token ids", False: "embeddings"}
    if (ids := not store.manifest.tail) != (words := bool(spec.option("words", 0))):
        raise BadInput(f"text store {store.folder}: holds {forms[ids]}, the model takes {forms[words]}")
    width = spec.option("text_width")
    if not ids and store.manifest.tail != (width,):
        raise BadInput(f"text store {store.folder}: embeddings of width {store.manifest.tail[0]}, the model takes {width}")


class Texts:
    """The captions of records: numbers into a store, one or several for each record."""

    def __init__(self, store: TextStore, numbers: Sequence[tuple[int, ...]]) -> None:
        self.store, self.numbers = store, numbers

    def choose(self, record: int, rng: np.random.Generator) -> int:
        """The number of a record's caption; of several, one that `rng` draws."""
        own = self.numbers[record]
        return own[int(rng.random() * len(own)) if len(own) > 1 else 0]
