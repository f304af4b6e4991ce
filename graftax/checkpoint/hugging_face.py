"""What the folders of Hugging Face's libraries share: a `config.json` that names its class, weights beside it, and tensors
that become the parameters of one of our networks by renaming."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from graftax.checkpoint.members import shown
from graftax.checkpoint.tensors import Source, read_tensors
from graftax.errors import BadInput

CONFIG = "config.json"
CLASS = {"diffusers": "_class_name", "transformers": "model_type"}
"""Where each library's `config.json` says what it is the config of."""

INDEX = ".index.json"
"""What follows the name of the weights in that of the list of their shards."""

_SHARD = re.compile(r"[\w-][\w.-]*")


PIPELINE = "model_index.json"
"""In the folder of a pipeline of diffusers, what its parts are."""

PART = "transformer"
"""The folder of a pipeline that holds the transformer."""


def read_config(folder: Path, library: str, classes: Sequence[str]) -> dict[str, Any]:
    """`config.json` of a folder that `library` wrote. Raises `BadInput` where it is none, or of no class in `classes`."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
        name = config[CLASS[library]]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BadInput(f"{path}: not the config of a {library} model ({shown(repr(error))})") from None
    if name not in classes:
        raise BadInput(f"{path}: a {shown(str(name))}, expected {' or '.join(classes)}")
    return config


def find_folder(path: Path) -> Path | None:
    """The folder with a transformer's `config.json`: `path`, or `path/transformer` of a pipeline; None if there is none."""
    return next((folder for folder in (path, path / PART) if (folder / CONFIG).is_file()), None)


def read_any_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder, whatever it configures. Raises `BadInput` where it is no JSON object."""
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (ValueError, OSError) as error:
        raise BadInput(f"{folder / CONFIG}: no JSON ({shown(repr(error))})") from None
    if not isinstance(config, dict):
        raise BadInput(f"{folder / CONFIG}: a {type(config).__name__}, expected an object of settings")
    return config


def pipeline_class(index: Path) -> str:
    """The class of the pipeline that a `model_index.json` describes. Raises `BadInput` where it describes none."""
    try:
        name = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BadInput(f"{index}: not that of a pipeline ({shown(repr(error))})") from None
    if not isinstance(name, str):
        raise BadInput(f"{index}: a {shown(str(name))}, expected the name of a pipeline's class")
    return name


def read_weights(folder: Path, names: Sequence[str]) -> tuple[dict[str, np.ndarray], Source]:
    """Tensors and `Source` of the first file in the folder that has one of the `names`, or of the shards in their place that
    an index "NAME.index.json" lists; of these `sha256` is that of the digests of all, sorted by name, one a line.

    Raises `BadInput` without one, and where index and shards disagree.
    """
    for name in names:
        if (folder / name).is_file():
            return read_tensors(folder / name)
        if (folder / f"{name}{INDEX}").is_file():
            return _read_shards(folder / f"{name}{INDEX}")
    raise BadInput(f"{folder}: no weights, expected one of {tuple(names)}")


def _read_shards(index: Path) -> tuple[dict[str, np.ndarray], Source]:
    placed = _weight_map(index)
    tensors: dict[str, np.ndarray] = {}
    digests = []
    for shard in sorted(set(placed.values())):
        if not (index.parent / shard).is_file():
            raise BadInput(f"{index}: its shard {shard} is missing")
        content, source = read_tensors(index.parent / shard)
        digests.append(source.sha256)
        for name in (name for name, where in placed.items() if where == shard):
            if name not in content:
                raise BadInput(f"{index.parent / shard}: tensor {shown(name)} is missing, the index says that it is there")
            tensors[name] = content[name]
    return tensors, Source(index.name, hashlib.sha256("\n".join(digests).encode()).hexdigest())


def _weight_map(index: Path) -> dict[str, str]:
    """The shard of every tensor, a file beside the index."""
    try:
        placed = json.loads(index.read_text())["weight_map"]
        files = set(placed.values())
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise BadInput(f"{index}: not the index of sharded weights ({shown(repr(error))})") from None
    for file in files:
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise BadInput(f"{index}: shard {shown(file)}, expected the name of a file beside it")
    return placed


@functools.cache
def shapes_of(init: Callable[[Any, jax.Array], Any], spec: Any) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of `init(spec, key)` by its path, "encoder/conv_in/kernel"."""
    leaves: Any = flatten_dict(jax.eval_shape(lambda: init(spec, jax.random.key(0))), sep="/")
    return {path: leaf.shape for path, leaf in leaves.items()}


def renamed(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], our_path: Callable[[str], str],
    our_layout: Callable[[str, np.ndarray], np.ndarray],
) -> dict[str, Any]:  # fmt: skip
    """The parameter tree that a flat state dict is under our names and in our order of axes.

    `shapes`: those of all parameters by path, "conv_in/kernel"; `our_path` maps their name to such a path ("" where there
    is none), `our_layout(path, tensor)` gives the leaf. Raises `BadInput` on missing, unexpected and mis-shaped tensors.
    """
    ours: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        path = our_path(name)
        if path not in shapes or path in ours:
            raise BadInput(f"tensor {shown(name)}: unexpected, there is no such layer or it is there already")
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise BadInput(f"tensor {name}: {tensor.dtype}, expected floating-point numbers")
        leaf = our_layout(path, tensor)
        if leaf.shape != shapes[path]:
            raise BadInput(f"tensor {name}: shape {tensor.shape}, expected that of {path} {shapes[path]}")
        ours[path] = leaf
    if missing := sorted(shapes.keys() - ours.keys()):
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise BadInput(f"tensors missing for {', '.join(missing[:5])}{more}")
    return unflatten_dict(ours, sep="/")
