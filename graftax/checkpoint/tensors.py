"""Flat state dicts from files of either format, with where they came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from graftax.checkpoint.files import existing_file, replacing, sha256
from graftax.checkpoint.members import shown
from graftax.checkpoint.torch_reader import read_texts, read_torch
from graftax.errors import BadInput

TORCH_SUFFIXES = (".pt", ".pth")
OTHER_SUFFIXES = (".bin", ".ckpt")
"""Hugging Face's and PyTorch Lightning's names for the same; read, never written."""

_DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
"""Names of types in safetensors files."""

ENTRIES = ("ema", "model", "state_dict")
"""Where training checkpoints keep the weights, best first."""


@dataclass(frozen=True)
class Source:
    """Where tensors came from: file name, SHA-256 of the file, the entry taken of a training checkpoint ("ema", or "" of
    a flat one), and the text metadata of a safetensors file or of an archive of ours."""

    name: str
    sha256: str
    entry: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_tensors(path: str | Path) -> tuple[dict[str, np.ndarray], Source]:
    """The flat state dict in a `.pt`, `.pth`, `.bin`, `.ckpt` or `.safetensors` file: name -> array, and its `Source`.

    `.pt`: see `torch_reader.read_torch`; of a training checkpoint the EMA weights are taken, else the model's. Arrays
    are views of the mapped file. Raises `BadInput` on other suffixes and on unreadable or refused files.
    """
    path = existing_file(path)
    tensors, entry, metadata = read_mapped(path)
    return tensors, Source(path.name, sha256(path), entry, metadata)


def read_mapped(path: Path) -> tuple[dict[str, np.ndarray], str, dict[str, str]]:
    """Tensors, entry and metadata as `read_tensors` has them, of a file whose numbers are left where they lie."""
    if path.suffix in (*TORCH_SUFFIXES, *OTHER_SUFFIXES):
        return *_state_dict(path, read_torch(path)), read_texts(path)
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        return tensors, "", metadata
    raise BadInput(f"{path}: suffix {path.suffix!r}, expected one of {(*TORCH_SUFFIXES, *OTHER_SUFFIXES, '.safetensors')}")


def _state_dict(path: Path, content: dict[Any, Any]) -> tuple[dict[str, np.ndarray], str]:
    entry = next((name for name in ENTRIES if isinstance(content.get(name), dict)), "")
    tensors = content[entry] if entry else content
    others = [name for name, value in tensors.items() if not (isinstance(name, str) and isinstance(value, np.ndarray))]
    if others or not tensors:
        found = f"entry {shown(others[0]) if others else 'none'}"
        raise BadInput(f"{path}: {found} is no tensor, expected a flat state dict or a checkpoint with one of {ENTRIES}")
    return tensors, entry


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All arrays of a safetensors file by name, read-only views of the mapped file, and its text metadata.

    Keep the file unchanged while the arrays are in use. Raises `BadInput` on a damaged file and on types that numpy and
    ml_dtypes do not have.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:  # checks the header: names, types, places
            texts = file.metadata() or {}
        return _mapped(path), texts
    except (SafetensorError, OSError, TypeError, ValueError, KeyError) as error:
        raise BadInput(f"{path}: not a readable safetensors file ({shown(str(error))})") from None


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """Views of a checked file: 8 bytes with the length of a JSON header, the header, then numbers in C order."""
    raw = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8:start].tobytes())
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            low, high = (start + offset for offset in entry["data_offsets"])
            found[name] = raw[low:high].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], named: Path | None = None
) -> None:
    """Write arrays and text metadata as a safetensors file, whole or not at all; errors are as in `files.replacing`."""
    from safetensors.numpy import save_file

    # The library takes the memory as it lies: anything not in C order would be written scrambled.
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    with replacing(path, named) as temporary:
        save_file(contiguous, temporary, metadata=dict(metadata))
