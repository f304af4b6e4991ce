"""Flat state dicts from files of either format, with where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graftax.checkpoint.files import existing_file, replacing, sha256
from graftax.checkpoint.members import shown
from graftax.checkpoint.torch_reader import read_torch
from graftax.errors import BadInput

TORCH_SUFFIXES = (".pt", ".pth")
HUGGING_FACE_SUFFIX = ".bin"
"""Another name for the same; read, never written."""

ENTRIES = ("ema", "model", "state_dict")
"""Where training checkpoints keep the weights, best first."""


@dataclass(frozen=True)
class Source:
    """Where tensors came from: file name, SHA-256 of the file, the entry taken of a training checkpoint ("ema", or "" of
    a flat one), and the text metadata of a safetensors file."""

    name: str
    sha256: str
    entry: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_tensors(path: str | Path) -> tuple[dict[str, np.ndarray], Source]:
    """The flat state dict in a `.pt`, `.pth`, `.bin` or `.safetensors` file: name -> array, and its `Source`.

    `.pt`: see `torch_reader.read_torch`; of a training checkpoint the EMA weights are taken, else the model's. Arrays of
    `.pt` files are views of the mapped file. Raises `BadInput` on other suffixes and on unreadable or refused files.
    """
    path = existing_file(path)
    if path.suffix in (*TORCH_SUFFIXES, HUGGING_FACE_SUFFIX):
        tensors, entry = _state_dict(path, read_torch(path))
        return tensors, Source(path.name, sha256(path), entry)
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        return tensors, Source(path.name, sha256(path), metadata=metadata)
    raise BadInput(
        f"{path}: suffix {path.suffix!r}, expected one of {(*TORCH_SUFFIXES, HUGGING_FACE_SUFFIX, '.safetensors')}"
    )


def _state_dict(path: Path, content: dict[Any, Any]) -> tuple[dict[str, np.ndarray], str]:
    entry = next((name for name in ENTRIES if isinstance(content.get(name), dict)), "")
    tensors = content[entry] if entry else content
    others = [name for name, value in tensors.items() if not (isinstance(name, str) and isinstance(value, np.ndarray))]
    if others or not tensors:
        found = f"entry {shown(others[0]) if others else 'none'}"
        raise BadInput(f"{path}: {found} is no tensor, expected a flat state dict or a checkpoint with one of {ENTRIES}")
    return tensors, entry


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All arrays of a safetensors file by name, and its text metadata. Raises `BadInput` on a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, ValueError, KeyError) as error:
        raise BadInput(f"{path}: not a readable safetensors file ({shown(str(error))})") from None


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write arrays and text metadata as a safetensors file, whole or not at all."""
    from safetensors.numpy import save_file

    # The library takes the memory as it lies: anything not in C order would be written scrambled.
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, metadata=dict(metadata))
