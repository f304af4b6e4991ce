"""graftax checkpoint folders: `model.safetensors` in our own layout and `graftax.json` that says what is in it.

`graftax.json` holds the SHA-256 of the weights, and spec and provenance for people and tools to read; what is loaded is
the copy of both inside the weights, so that `model.safetensors` alone is a model.

A save replaces both at one instant: the new weights are written under a name of their own, then `graftax.json` is
replaced (from here on the new model is the one that loads), then the weights take their usual name. A save that is cut
off anywhere leaves the old model or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from graftax.blocks import resolve_all
from graftax.checkpoint.card import card as card_text
from graftax.checkpoint.card import card_path
from graftax.checkpoint.files import existing_file, making, remove_strays, replacing, sha256
from graftax.checkpoint.paths import published
from graftax.checkpoint.tensors import read_safetensors, write_safetensors
from graftax.errors import BadInput, naming
from graftax.models.backbone import find
from graftax.spec import ModelSpec

WEIGHTS = "model.safetensors"
INDEX = "graftax.json"
FORMAT = "graftax"
DTYPES = ("float32", "bfloat16", "float16")


def save_model(
    folder: str | Path, spec: ModelSpec, params: Mapping[str, Any], meta: Mapping[str, Any], dtype: str = "float32"
) -> None:
    """Write a checkpoint folder (made if need be; local, mounted or gs://), replacing the model in it. Of several processes
    only the first writes.

    `meta` is a dictionary of JSON values. `dtype` "float16" and "bfloat16" halve the size: values are rounded to 11 and to
    8 significant bits. Raises `BadInput` where a value exceeds the type, `meta` is no JSON, or `folder` is a file.
    """
    if dtype not in DTYPES:
        raise BadInput(f"dtype {dtype!r}: expected one of {DTYPES}")
    leaves = {path: _as_dtype(path, np.asarray(leaf), dtype) for path, leaf in flatten_dict(dict(params), sep="/").items()}
    texts = {"format": FORMAT, "spec": spec.to_json(), "meta": _to_json(meta)}
    if jax.process_index() == 0:
        with published(folder, last=INDEX) as local, making(local) as place:
            _write(place, leaves, texts)


def _write(folder: Path, leaves: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> None:
    fresh = folder / f"fresh-{WEIGHTS}"
    write_safetensors(fresh, leaves, texts, named=folder / WEIGHTS)
    digest = sha256(fresh)
    named = fresh.rename(_interim(folder, digest))
    index = {"spec": json.loads(texts["spec"]), "meta": json.loads(texts["meta"]), "sha256": digest}
    try:
        with replacing(folder / INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=1) + "\n")
    except BadInput:
        if digest not in _text(folder / INDEX):
            named.unlink()
        raise
    named.replace(folder / WEIGHTS)
    with replacing(card_path(folder)) as temporary:
        temporary.write_text(card_text(folder.name, read_spec(texts["spec"]), index["meta"]))
    for stray in folder.glob(_interim(folder, "*").name):  # left by saves that were cut off, as those below
        stray.unlink()
    remove_strays(fresh)
    remove_strays(folder / INDEX)
    remove_strays(card_path(folder))


def read_folder(folder: str | Path) -> tuple[ModelSpec, dict[str, Any], dict[str, Any], str]:
    """(spec, params, meta, SHA-256 of the weights) of a checkpoint folder; params numpy views of the file, as stored.

    Raises `BadInput` where the folder is no checkpoint, or its weights are not those that `graftax.json` names.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise BadInput(f"{folder}: no {INDEX} in it, expected a folder written by graftax.save")
    try:
        index = json.loads((folder / INDEX).read_text())
        expected = str(index["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / INDEX}: damaged ({error!r})") from None
    interim = _interim(folder, expected)
    weights = existing_file(interim if interim.is_file() else folder / WEIGHTS)
    found = sha256(weights)
    if found != expected:
        raise BadInput(f"{weights}: SHA-256 {found[:12]}..., but {INDEX} says {expected[:12]}...; damaged or replaced")
    spec, params, meta = load_file(weights)
    if read_spec(json.dumps(index.get("spec"))) != spec:
        raise BadInput(f"{folder / INDEX}: its spec is not that of the weights, which {WEIGHTS} holds too; changed by hand?")
    return spec, params, meta, found


def spec_of_folder(folder: str | Path) -> ModelSpec:
    """What the model in a checkpoint folder is, by its `graftax.json`; weights are not looked at."""
    path = Path(folder) / INDEX
    try:
        text = json.dumps(json.loads(path.read_text())["spec"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: damaged ({error!r})") from None
    with naming(path):
        return read_spec(text)


def load_file(path: Path) -> tuple[ModelSpec, dict[str, Any], dict[str, Any]]:
    """(spec, params, meta) from a weights file of ours by itself."""
    tensors, texts = read_safetensors(path)
    with naming(path):
        return from_own_layout(tensors, texts)


def is_own_layout(texts: Mapping[str, str]) -> bool:
    """Whether a safetensors file's metadata says that it holds our layout."""
    return texts.get("format") == FORMAT


def from_own_layout(
    tensors: Mapping[str, np.ndarray], texts: Mapping[str, str]
) -> tuple[ModelSpec, dict[str, Any], dict[str, Any]]:
    """(spec, params, meta) from the content of a weights file of ours."""
    try:
        spec, meta = read_spec(texts["spec"]), dict(json.loads(texts["meta"]))
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(f"metadata not as graftax.save writes it ({error})") from None
    return spec, unflatten_dict(dict(tensors), sep="/"), meta


def read_spec(text: str) -> ModelSpec:
    """The spec in a file's metadata, its operators checked; raises `BadInput`."""
    spec = resolve_all(ModelSpec.from_json(text))
    find(spec).check(spec)
    return spec


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def _interim(folder: Path, digest: str) -> Path:
    """Where weights lie between being complete and having their usual name."""
    return folder / f"interim-{digest[:16]}-{WEIGHTS}"


def _to_json(meta: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(meta))
    except (TypeError, ValueError) as error:
        raise BadInput(f"meta: {error}, expected JSON values") from None


def _as_dtype(path: str, leaf: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = leaf.astype(dtype, copy=False)
    if not np.array_equal(np.isfinite(stored), np.isfinite(leaf)):
        raise BadInput(f"parameter {path}: |value| {np.abs(leaf).max():.3g} exceeds {dtype}")
    return stored
