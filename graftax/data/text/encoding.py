"""`graftax encode --text`: plan, encode the captions that are missing, seal the store.

Batches never cross shards and have one shape, filled up with empty captions: machines alike write the same bytes, whichever
of them and whenever. See `graftax.data.shards` for what a kill may cost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from graftax.data import shards
from graftax.data.text.captions import read_prompts
from graftax.data.text.store import CAPTIONS, IDS, TextManifest, TextRow
from graftax.errors import BadInput
from graftax.progress import Progress, say


class TextEncoder(Protocol):
    """What embeds captions: `graftax.text_encoder(folder)`, or a function of one's own with a hash.

    Attributes:
        sha256: of all that its results depend on.
    """

    @property
    def sha256(self) -> str: ...
    def __call__(self, prompts: Sequence[str], /) -> Mapping[str, Any]:
        """{"text": (b, m, d) floats, "text_mask": (b, m), true at the tokens, which come first}; without the mask where
        models read the padding too; "pooled" (b, c) or not; or {"text": (b, m)} alone, token ids, 0 behind the last."""
        ...


@dataclass(frozen=True)
class Encoded:
    """What an encoder has made of texts, its padding left out.

    Attributes:
        rows: of each text.
        length: tokens that it gives for each, padding among them.
        tail: (d,) of embeddings, () of token ids.
        masked: whether models must not look at the padding: it comes with a mask, or 0 as an id says it.
    """

    rows: tuple[TextRow, ...]
    length: int
    tail: tuple[int, ...]
    masked: bool

    @property
    def form(self) -> dict[str, Any]:
        """What is the same for all texts, as fields of a `TextManifest`."""
        pooled = self.rows[0].pooled
        return {
            "length": self.length, "tail": self.tail, "pooled": None if pooled is None else len(pooled),
            "unmasked": None if self.masked else True,
        }  # fmt: skip


def encode_texts(
    source: str | Path, out: str | Path, encoder: str, open_encoder: Callable[[str], TextEncoder], *,
    dtype: str = "bfloat16", batch_size: int = 64, shard_size: int = 4096, afresh: bool = False,
) -> None:  # fmt: skip
    """Write, continue or repair the text store in the folder `out`; arguments are those of the command, `open_encoder` opens
    the folder `encoder`, `afresh` removes a store that is there already.

    `source` is as in `read_prompts`: each distinct text is encoded once, in the order in which they come. Of a caption's
    embedding its tokens are kept, not the padding, and the pooled vector, as `dtype`; token ids are int32 whatever it is. It
    may be stopped or killed at any time. Raises `BadInput` on texts that cannot be read or an `out` that holds something
    else.
    """
    share = jax.process_index(), jax.process_count()
    if shard_size < 1 or batch_size < 1:
        raise BadInput(f"batch-size {batch_size}, shard-size {shard_size}: expected 1 or more")
    prompts = read_prompts(source)
    captions = tuple(dict.fromkeys((*prompts, "")))  # the empty one, which no file has, comes last
    run = open_encoder(encoder)
    plan, listed = _plan(str(source), captions, encoder, run, dtype, shard_size)
    leads = share[0] == 0
    if afresh:
        shards.remove_set(Path(out), TextManifest, leads)
    folder = shards.begin(Path(out), plan, {CAPTIONS: listed})
    if leads:
        say(f"{source}: {len(prompts):,} captions, {len(captions) - 1:,} of them distinct")
    write_missing(folder, plan, captions, run, batch_size, *share)
    shards.together("all captions encoded")
    if leads:
        print(shards.seal(folder, plan))


def _plan(
    source: str, captions: Sequence[str], encoder: str, run: TextEncoder, dtype: str, shard_size: int
) -> tuple[TextManifest, str]:
    """The plan, and the text of its file of captions."""
    found = encoded(run, [""])
    listed = "".join(json.dumps(caption, ensure_ascii=False) + "\n" for caption in captions)
    plan = TextManifest(
        source=source, count=len(captions), captions_sha256=hashlib.sha256(listed.encode()).hexdigest(), encoder=encoder,
        encoder_sha256=run.sha256, shard_size=shard_size, dtype=dtype if found.tail else IDS, **found.form,
    )  # fmt: skip
    return plan, listed


def write_missing(
    folder: Path, plan: TextManifest, captions: Sequence[str], run: TextEncoder, batch_size: int, process_index: int,
    process_count: int,
) -> None:  # fmt: skip
    """Write this process's shards that are not there, or not as they were described."""
    own, missing = shards.missing_shards(folder, plan, process_index, process_count)
    total, left = (sum(len(plan.span(i)) for i in some) for some in (own, missing))
    with Progress(total, "encode", unit="caption", initial=total - left) as progress:
        for i in missing:
            lengths: list[int] = []

            def records(span: range = plan.span(i), lengths: list[int] = lengths) -> Iterator[np.ndarray]:
                for start in span[::batch_size]:
                    part = captions[start : min(start + batch_size, span.stop)]
                    for tokens, record in _rows(run, part, batch_size, plan):
                        lengths.append(tokens)
                        yield record
                    progress.advance(len(part))

            shards.write_described(folder, plan.files[i], records(), {"lengths": lengths})


def _rows(
    run: TextEncoder, captions: Sequence[str], batch_size: int, plan: TextManifest
) -> Iterator[tuple[int, np.ndarray]]:
    """Of each caption the number of its tokens and its record: these (k, d) and the pooled vector (c,), one after the other,
    in the type that they are stored in."""
    found = encoded(run, [*captions, *[""] * (batch_size - len(captions))])
    if found.form != (expected := {name: getattr(plan, name) for name in found.form}):
        raise BadInput(f"text encoder: gives {found.form}, expected {expected} as of the empty caption")
    for caption, row in zip(captions, found.rows, strict=False):
        parts = [row.tokens.ravel()] if row.pooled is None else [row.tokens.ravel(), row.pooled]
        with np.errstate(over="ignore"):
            record = np.concatenate(parts).astype(jnp.dtype(plan.dtype))
        if not np.isfinite(record.astype(np.float32)).all():
            raise BadInput(f"caption {caption[:60]!r}: embedding not finite, expected numbers within {plan.dtype}")
        yield len(row.tokens), record


def encoded(run: TextEncoder, captions: Sequence[str]) -> Encoded:
    """What `run` makes of captions, without padding. Raises `BadInput` where that comes first, or on other arrays.

    Where there is no mask, models read the padding like any token: of embeddings only the zeros at the end are left out,
    which filling up brings back.
    """
    found = {name: np.asarray(value) for name, value in run(captions).items()}
    text, pooled = found.get("text", np.zeros(0)), found.get("pooled")
    shapes = ", ".join(f"{name} {found[name].shape}" for name in sorted(found))
    known = found.keys() <= {"text", "text_mask", "pooled"} and text.ndim in (2, 3) and (text.ndim == 3 or len(found) == 1)
    if not known or {len(array) for array in found.values()} != {len(captions)} or (pooled is not None and pooled.ndim != 2):
        expected = "text (b, m, d) with or without text_mask (b, m) and pooled (b, c), or token ids (b, m) alone"
        raise BadInput(f"text encoder: gives {shapes} for {len(captions)} captions, expected {expected}")
    if "text_mask" in found:
        mask = found["text_mask"].astype(bool)
    else:
        used = text != 0 if text.ndim == 2 else (text != 0).any(-1)
        mask = used if text.ndim == 2 else used[:, ::-1].cumsum(axis=1)[:, ::-1] > 0  # (b, m), true up to the last in use
    lengths = mask.sum(axis=1)
    if mask.shape != text.shape[:2] or (mask != (np.arange(text.shape[1]) < lengths[:, None])).any():
        raise BadInput(f"text encoder: gives {shapes}, expected tokens before padding, a mask (b, m)")
    rows = [TextRow(text[i, :k].copy(), None if pooled is None else pooled[i]) for i, k in enumerate(lengths)]
    return Encoded(tuple(rows), text.shape[1], text.shape[2:], "text_mask" in found or text.ndim == 2)
