"""PyTorch zip checkpoints, written without PyTorch: `torch.load(path, weights_only=True)` gives the tensors back.

The pickle in such a file is a handful of fixed instructions per tensor, so it is spelled out here byte by byte; see
`torch_reader` for what they mean and `pickletools` for their names.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from graftax.checkpoint.files import replacing
from graftax.checkpoint.torch_reader import STORAGES, TEXTS
from graftax.errors import BadInput

ALIGNMENT = 64
"""Where storages start in the file: at multiples of this, so that they can be mapped (as PyTorch aligns them)."""

_ROOT = "archive"
_FIXED_DATE = (1980, 1, 1, 0, 0, 0)  # equal tensors give equal files
_LARGE_MEMBER = (1 << 31) - 1


def write_torch(
    path: str | Path, tensors: Mapping[str, np.ndarray], key: str | None = None, texts: Mapping[str, str] | None = None
) -> None:
    """Write a flat state dict, name -> array, as a PyTorch zip checkpoint; under `key` ("ema") if given.

    `texts` go into a member of their own, which PyTorch does not look at and `torch_reader.read_texts` reads.

    Arrays are written as they are (C order), each with a storage of its own; the file appears whole or not at all.
    Raises `BadInput` on element types PyTorch has no storage for.
    """
    path = Path(path)
    names = {dtype: name for name, dtype in STORAGES.items()}
    for name, tensor in tensors.items():
        if tensor.dtype not in names:
            raise BadInput(f"{path}: tensor {name} is {tensor.dtype}, expected one of {sorted(map(str, names))}")
    kinds = {name: names[tensor.dtype] for name, tensor in tensors.items()}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", np.frombuffer(_pickle(tensors, kinds, key), np.uint8))
        _add(archive, "byteorder", np.frombuffer(b"little", np.uint8))
        for index, tensor in enumerate(tensors.values()):
            _add(archive, f"data/{index}", np.ascontiguousarray(tensor).reshape(-1).view(np.uint8))
        _add(archive, "version", np.frombuffer(b"3\n", np.uint8))
        if texts:
            _add(archive, TEXTS, np.frombuffer(json.dumps(dict(texts)).encode(), np.uint8))


def _add(archive: zipfile.ZipFile, name: str, content: np.ndarray) -> None:
    """Append a stored member whose data start at a multiple of `ALIGNMENT`, by way of a padding extra field."""
    info = zipfile.ZipInfo(f"{_ROOT}/{name}", _FIXED_DATE)
    large = content.nbytes > _LARGE_MEMBER
    # Local header 30 bytes, then the name, then extra fields: 20 bytes of zip64 sizes in large members, 4 + padding ours.
    start = archive.start_dir + 30 + len(info.filename) + (20 if large else 0) + 4
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as member:
        member.write(content.data)


def _pickle(tensors: Mapping[str, np.ndarray], kinds: Mapping[str, str], key: str | None) -> bytes:
    parts = [b"\x80\x02"]  # PROTO 2
    if key is not None:
        parts += [b"}", _text(key)]
    parts += [b"}", b"("]  # EMPTY_DICT, MARK
    for index, (name, tensor) in enumerate(tensors.items()):
        parts += [_text(name), _tensor(tensor.shape, kinds[name], index)]
    parts += [b"u", b"s" if key is not None else b"", b"."]  # SETITEMS, SETITEM, STOP
    return b"".join(parts)


def _tensor(shape: tuple[int, ...], kind: str, index: int) -> bytes:
    """_rebuild_tensor_v2(storage, 0, shape, strides, requires_grad=False, hooks=OrderedDict())."""
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    storage = [_text("storage"), f"ctorch\n{kind}\n".encode(), _text(str(index)), _text("cpu"), _integer(math.prod(shape))]
    parts = [b"ctorch._utils\n_rebuild_tensor_v2\n((", *storage, b"tQ", _integer(0), _tuple(shape), _tuple(strides)]
    return b"".join([*parts, b"\x89ccollections\nOrderedDict\n)RtR"])  # False, OrderedDict(), and the call


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded  # BINUNICODE


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)  # BININT
    return b"\x8a\x08" + struct.pack("<q", value)  # LONG1 of 8 bytes


def _tuple(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"
