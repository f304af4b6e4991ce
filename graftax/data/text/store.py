"""Text stores: the embedding of every distinct caption once, without padding, so that no training step runs a text encoder.

    FOLDER/manifest.json                      encoder, lengths, checksums
    FOLDER/captions.jsonl                     the captions, one JSON string a line, by their number
    FOLDER/text-00000-of-00002.array_record   a record is (tokens, d), or (tokens,) where the encoder gives token ids; behind
                                              them the pooled vector (c,), where it gives one

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
        pooled: width of the pooled vectors, None where there are none.
        unmasked: true where the encoder gives embeddings without a mask, since models read the padding too; else None.
    """

    format: ClassVar[str] = "graftax text 1"
    what: ClassVar[str] = "text store"
    stem: ClassVar[str] = "text"
    verb: ClassVar[str] = "graftax encode"
    free: ClassVar[tuple[str, ...]] = ("source", "encoder", "shards")
    later: ClassVar[tuple[str, ...]] = ("pooled", "unmasked")
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
    pooled: int | None = None
    unmasked: bool | None = None

    @property
    def contents(self) -> str:
        """What the store holds, in words."""
        shape = ", ".join(map(str, ("<=", self.length, *self.tail))).replace("<=, ", "<= ")
        return f"{self.count:,} captions ({shape})" + (f", pooled ({self.pooled},)" if self.pooled else "")


@dataclass(frozen=True)
class TextRow:
    """What is kept of one text.

    Attributes:
        tokens: (k, d) embeddings or (k,) token ids, without padding.
        pooled: (c,); None where the encoder gives none.
    """

    tokens: np.ndarray
    pooled: np.ndarray | None = None


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
        """{"text": (b, m, d) in the store's type, "text_mask": (b, m) bool, true at tokens} of captions (b,), and "pooled"
        (b, c) where there is any; without the mask where models read the padding too.

        Behind a caption's tokens are zeros. Of token ids {"text": (b, m) int32} alone: there 0 says what is padding. Raises
        `BadInput` where a record is damaged.
        """
        own = self.manifest
        records = [np.frombuffer(row, jnp.dtype(own.dtype)) for row in fetch(self._rows, numbers, self.folder, own)]
        return padded([self._row(record) for record in records], own.length, masked=not own.unmasked)

    def _row(self, record: np.ndarray) -> TextRow:
        tokens, pooled = np.split(record, [len(record) - (self.manifest.pooled or 0)])
        return TextRow(tokens.reshape(-1, *self.manifest.tail), pooled if self.manifest.pooled else None)


def padded(rows: Sequence[TextRow], length: int, *, masked: bool) -> dict[str, np.ndarray]:
    """{"text": (b, length, d)} of embeddings (k, d), k <= length, zeros behind them, or (b, length) of token ids (k,); if
    `masked`, of embeddings also "text_mask" (b, length) bool, true at tokens; "pooled" (b, c) where there is any."""
    text = np.zeros((len(rows), length, *rows[0].tokens.shape[1:]), rows[0].tokens.dtype)
    for to, row in zip(text, rows, strict=True):
        to[: len(row.tokens)] = row.tokens
    found = {"text": text}
    if masked and text.ndim == 3:
        found["text_mask"] = np.arange(length) < np.array([len(row.tokens) for row in rows])[:, None]
    if pooled := [row.pooled for row in rows if row.pooled is not None]:
        found["pooled"] = np.stack(pooled)
    return found


def open_store(folder: str | Path) -> TextStore:
    """The text store in `folder`. Raises `BadInput` where there is none, it is unfinished, or a shard is missing or cut."""
    folder = fetched(folder, whole=True)
    manifest = read_sharded(folder, TextManifest)
    return TextStore(folder, manifest, open_rows(folder, manifest))


def check_text(store: TextStore, spec: ModelSpec) -> None:
    """Raise `BadInput` unless a model of `spec` takes texts, so many tokens of this form, embeddings and pooled vectors of
    these widths, and a mask where there is one."""
    own, where = store.manifest, f"text store {store.folder}"
    if spec.classes:
        raise BadInput(f"{where}: a model that knows {spec.classes} classes takes no captions")
    if own.length > (most := spec.sizes.context or spec.sizes.text - spec.option("registers", 0)):
        raise BadInput(f"{where}: texts of {own.length} tokens, the model takes up to {most}")
    forms = {True: "token ids", False: "embeddings"}
    if (ids := not own.tail) != (words := bool(spec.option("words", 0))):
        raise BadInput(f"{where}: holds {forms[ids]}, the model takes {forms[words]}")
    if ids:
        return
    if own.tail != (width := spec.option("text_width"),):
        raise BadInput(f"{where}: embeddings of width {own.tail[0]}, the model takes {width}")
    if (own.pooled or 0) != (pooled := spec.option("pooled_width", 0)):
        raise BadInput(f"{where}: pooled texts of width {own.pooled or 0}, the model takes {pooled} (0: none)")
    if bool(own.unmasked) == bool(spec.sizes.context):
        has, takes = ("none", "one") if own.unmasked else ("one", "none")
        raise BadInput(f"{where}: embeddings that come with a mask: {has}, the model takes {takes}")


class Texts:
    """The captions of records: numbers into a store, one or several for each record."""

    def __init__(self, store: TextStore, numbers: Sequence[tuple[int, ...]]) -> None:
        self.store, self.numbers = store, numbers

    def choose(self, record: int, rng: np.random.Generator) -> int:
        """The number of a record's caption; of several, one that `rng` draws."""
        own = self.numbers[record]
        return own[int(rng.random() * len(own)) if len(own) > 1 else 0]
