"""One door to every image set: by the text that configs and `graftax encode` take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from graftax.checkpoint.hub import fetched, is_hub
from graftax.data import subset as subsets
from graftax.data.folder import open_folder
from graftax.data.latents import LatentSet, is_latent_set, open_latents
from graftax.data.source import FASHION_MNIST, SPLITS, Records, load_source
from graftax.data.text.captions import JSON_LINES, open_captioned
from graftax.data.tfds import PREFIX, open_tfds
from graftax.errors import BadInput


def at_hand(source: str) -> str:
    """`source`, or the folder or file that the whole of an address hf:// is in, fetched."""
    return str(fetched(source, whole=True)) if is_hub(source) else source


def open_records(source: str, data_dir: str | None = None) -> Records:
    """The images of "fashion_mnist[#test]" (embedded), an `.npz`, "tfds:NAME[:VERSION][#SPLIT]", a folder of classes, or
    of an address hf:// of either.

    `data_dir` is where tensorflow-datasets keeps what it prepared. Raises `BadInput` where there are none, naming what is
    wrong.
    """
    source = at_hand(source)
    if source.startswith(PREFIX):
        return open_tfds(source.removeprefix(PREFIX), data_dir)
    if source.partition("#")[0] == FASHION_MNIST:
        return load_source(FASHION_MNIST, source.partition("#")[2] or SPLITS[0])
    if is_latent_set(source):
        raise BadInput(f"source {source!r}: a latent set, expected images")
    if source.endswith(JSON_LINES):
        raise BadInput(f"source {source!r}: pictures with captions, expected a text store of them beside it")
    return open_folder(source) if Path(source).is_dir() else load_source(source)


def open_any(source: str, data_dir: str | None = None, text: str | None = None) -> Records | LatentSet:
    """As `open_records`, or the latent set in a folder; with a text store, `text`, pictures with captions."""
    if is_latent_set(source):
        return open_latents(source, text)
    return open_records(source, data_dir) if text is None else open_captioned(source)


def part(records: Records | LatentSet, subset: str | None, seed: int) -> tuple[Any, str]:
    """The stratified part `subset` of `records` (None: all), of their type, and a line that names it by its hash."""
    if subset is None:
        return records, f"{records.name}: {len(records):,} images"
    indices = subsets.stratified(np.asarray(records.labels), subset, seed)
    line = f"{records.name}: {len(indices):,} of {len(records):,} images, subset {subset!r} of seed {seed}, SHA-256 "
    return records.take(indices), line + subsets.digest(indices)
