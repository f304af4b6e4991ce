"""The small networks beside the transformer: where their weights are, and how they run over many images."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from graftax.checkpoint.files import making
from graftax.checkpoint.hub import fetched
from graftax.checkpoint.paths import local_copy, published
from graftax.checkpoint.shipped import is_shipped, shipped_path
from graftax.checkpoint.tensors import read_safetensors, write_safetensors
from graftax.errors import BadInput
from graftax.nets.autoencoder import AutoencoderSpec
from graftax.nets.classifier import ClassifierSpec
from graftax.nets.convolving import compile_options

Params = dict[str, Any]
SPECS = {"autoencoder": AutoencoderSpec, "classifier": ClassifierSpec}


def load_autoencoder(name: str) -> tuple[AutoencoderSpec, Params]:
    """A shipped autoencoder ("demo", "scenes"), or one that `save` wrote to a file or into a folder."""
    return load("autoencoder", name)


def load_classifier(name: str) -> tuple[ClassifierSpec, Params]:
    """The shipped classifier ("demo"), or one that `save` wrote to a file or into a folder."""
    return load("classifier", name)


def load(kind: str, name: str) -> Any:
    """(spec, params float32) of a small network. Raises `BadInput` where the file is missing or of another kind."""
    with local_copy(shipped_path(name, kind) if is_shipped(name, kind) else fetched(name)) as path:
        path = path / f"{kind}.safetensors" if path.is_dir() else path
        if not path.exists():
            raise BadInput(f"{kind} {name!r}: no such file, expected 'demo' or what `graftax train` saved")
        tensors, texts = read_safetensors(path)
    if texts.get("format") != f"graftax-{kind}":
        raise BadInput(f"{path}: format {texts.get('format')!r}, expected a graftax-{kind}")
    params = unflatten_dict({key: np.asarray(tensor, np.float32) for key, tensor in tensors.items()}, sep="/")
    return SPECS[kind].from_json(texts["spec"]), params


def save(kind: str, folder: Path, spec_json: str, params: Params, meta: Mapping[str, Any], dtype: str = "float32") -> None:
    """Write folder/KIND.safetensors; `load` reads it back."""
    leaves = {key: np.asarray(leaf).astype(dtype) for key, leaf in flatten_dict(params, sep="/").items()}
    texts = {"format": f"graftax-{kind}", "spec": spec_json, "meta": json.dumps(dict(meta))}
    file = f"{kind}.safetensors"
    if jax.process_index() == 0:
        with published(folder, last=file) as local, making(local) as place:
            write_safetensors(place / file, leaves, texts)


def in_chunks(
    function: Callable[..., jax.Array], spec: Any, params: Params, arrays: np.ndarray, shape: tuple[int, ...], *,
    size: int = 500, seen: Callable[[np.ndarray], np.ndarray] = lambda chunk: chunk,
) -> np.ndarray:  # fmt: skip
    """function(spec, params, seen(arrays (n, ...))) -> (n, *shape) float32, in compiled pieces of `size`."""
    run = jax.jit(functools.partial(function, spec), compiler_options=compile_options())
    parts = [np.asarray(run(params, seen(arrays[i : i + size]))) for i in range(0, len(arrays), size)]
    return np.concatenate(parts) if parts else np.zeros((0, *shape), np.float32)
