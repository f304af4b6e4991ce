"""`graftax encode --text`: plan, encode the captions that are missing, seal the store.

Batches never cross shards and have one shape, filled up with empty captions: machines alike write the same bytes, whichever
of them and whenever. See `graftax.data.shards` for what a kill may cost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from graftax.data import shards
from graftax.data.text.captions import read_prompts
from graftax.data.text.store import CAPTIONS, IDS, TextManifest
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
        """{"text": (b, m, d) floats, "text_mask": (b, m), true at the tokens, which come first}, or {"text": (b, m)} alone,
        token ids, 0 behind the last."""
        ...


def encode_texts(
    source: str | Path, out: str | Path, encoder: str, open_encoder: Callable[[str], TextEncoder], *,
    dtype: str = "bfloat16", batch_size: int = 64, shard_size: int = 4096, afresh: bool = False,
) -> None:  # fmt: skip
    """Write, continue or repair the text store in the folder `out`; arguments are those of the command, `open_encoder` opens
    the folder `encoder`, `afresh` removes a store that is there already.

    `source` is as in `read_prompts`: each distinct text is encoded once, in the order in which they come. Of a caption's
    embedding its tokens are kept, not the padding, as `dtype`; token ids are int32 whatever `dtype` is. It may be stopped or
    killed at any time. Raises `BadInput` on texts that cannot be read or an `out` that holds something else.
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
    text, _ = encoded(run, [""])
    listed = "".join(json.dumps(caption, ensure_ascii=False) + "\n" for caption in captions)
    plan = TextManifest(
        source=source, count=len(captions), captions_sha256=hashlib.sha256(listed.encode()).hexdigest(), encoder=encoder,
        encoder_sha256=run.sha256, length=text.shape[1], tail=text.shape[2:], shard_size=shard_size,
        dtype=dtype if jnp.issubdtype(text.dtype, jnp.floating) else IDS,
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
                    for tokens in _rows(run, part, batch_size, plan):
                        lengths.append(len(tokens))
                        yield tokens
                    progress.advance(len(part))

            shards.write_described(folder, plan.files[i], records(), {"lengths": lengths})


def _rows(run: TextEncoder, captions: Sequence[str], batch_size: int, plan: TextManifest) -> Iterator[np.ndarray]:
    """The tokens (k, d) of each caption, in the type that they are stored in."""
    text, lengths = encoded(run, [*captions, *[""] * (batch_size - len(captions))])
    if text.shape[1:] != (plan.length, *plan.tail):
        raise BadInput(f"text encoder: {text.shape[1:]}, expected {(plan.length, *plan.tail)} as of the empty caption")
    for caption, own, length in zip(captions, text, lengths, strict=False):
        with np.errstate(over="ignore"):
            tokens = own[:length].astype(jnp.dtype(plan.dtype))
        if not np.isfinite(tokens.astype(np.float32)).all():
            raise BadInput(f"caption {caption[:60]!r}: embedding not finite, expected numbers within {plan.dtype}")
        yield tokens


def encoded(run: TextEncoder, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Text (b, m, d) or (b, m) of captions, and their numbers of tokens (b,). Raises `BadInput` where padding is first."""
    found = run(captions)
    text = np.asarray(found["text"])
    if "pooled" in found or ("text_mask" not in found and text.ndim != 2):
        raise BadInput(f"text encoder: gives {', '.join(sorted(found))}, expected text and text_mask, or token ids alone")
    mask = np.asarray(found["text_mask"]).astype(bool) if "text_mask" in found else text != 0
    lengths = mask.sum(axis=1)
    first = np.arange(mask.shape[1]) < lengths[:, None]
    if mask.shape != text.shape[:2] or len(text) != len(captions) or (mask != first).any():
        raise BadInput(
            f"text encoder: text {text.shape}, text_mask {mask.shape}, expected ({len(captions)}, m, ..) and (b, m), tokens "
            "before padding"
        )
    return text, lengths
