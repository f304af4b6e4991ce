"""PyTorch checkpoints, read without PyTorch and without executing anything.

A `.pt` file is a zip archive: `data.pkl`, a pickle of the object saved, and one member `data/<key>` per storage with raw
little-endian numbers. The format from before PyTorch 1.6 (the usual Inception weights have it) is five pickles in a row
(a magic number, a version, the writer's machine, the object, the order of storages) and then the storages, each after
its element count. Pickles run on `pickle_machine.Machine`; names outside `NAMES` are refused.

Memory is bounded by the file's own size, not by what it claims: tensors are views of the memory-mapped file, or of
copies of storages that fit into the file, checked to lie inside.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from graftax.checkpoint.files import existing_file
from graftax.checkpoint.members import Member, Refused, shown, stored_members
from graftax.checkpoint.pickle_machine import (
    Machine,
    Name,
    Stateful,
    check_attributes,
    checked_size,
    checked_sizes,
    make_empty,
)
from graftax.errors import BadInput

LARGEST_PICKLE = 16 << 20
"""Bytes of the object's pickle. A model of 1,000 tensors with optimiser state takes 0.4 MB."""

OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of the format from before PyTorch 1.6: a pickle of its magic number (torch/serialization.py)."""

OLD_VERSION = 1001

TEXTS = "graftax.json"
"""Member of the archives that we write: texts by name."""

STORAGES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
"""PyTorch's storage classes and their element types (torch/storage.py)."""


@dataclass
class Record(Stateful):
    """An `argparse.Namespace` from a checkpoint as mere data: its attributes in a dict, never set as attributes."""

    fields: dict[str, Any] = field(default_factory=dict)

    def set_state(self, state: Any) -> None:
        """Take in the attributes."""
        self.fields.update(check_attributes(state))


@dataclass(frozen=True)
class Storage:
    """Raw bytes of one storage and the type of its elements."""

    raw: np.ndarray
    dtype: np.dtype

    @property
    def length(self) -> int:
        return self.raw.size // self.dtype.itemsize


def read_torch(path: str | Path) -> dict:
    """The dictionary in a PyTorch checkpoint: its tensors as numpy arrays, for zip files read-only views of the mapped file.

    Float64/32/16, bfloat16 (as `ml_dtypes.bfloat16`), integer, uint8 and bool tensors of any strides; storages may be
    shared. `OrderedDict` becomes a dict, `argparse.Namespace` a `Record`, `torch.Size` a tuple, a parameter its tensor.
    Nothing is executed and nothing but the pickle is read. Keep the file unchanged while the arrays are in use.

    Raises `BadInput`, one line with the file's name and the reason, on everything else: other globals, other pickle
    instructions, compressed, truncated or contradictory archives, tensors that
    reach beyond their storage.
    """
    path = existing_file(path)
    try:
        result = _read(path)
    except Refused as reason:
        raise BadInput(f"{path}: refused, {reason}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    return result


def read_texts(path: Path) -> dict[str, str]:
    """The texts that `torch_writer.write_torch` has put into a zip checkpoint that can be read; {} where there are none.

    Raises `BadInput` where they are damaged.
    """
    if not zipfile.is_zipfile(path):
        return {}
    member = stored_members(path).get(TEXTS, Member(0, 0))
    if member.size > LARGEST_PICKLE:
        raise BadInput(f"{path}: {TEXTS} of {member.size} bytes, expected at most {LARGEST_PICKLE}")
    raw = np.memmap(path, mode="r")[member.start : member.start + member.size].tobytes()
    try:
        texts = json.loads(raw) if raw else {}
        return {str(name): str(text) for name, text in texts.items()}
    except (ValueError, AttributeError) as error:
        raise BadInput(f"{path}: {TEXTS} is damaged ({shown(str(error))})") from None


def _read(path: Path) -> dict:
    with path.open("rb") as file:
        old = file.read(len(OLD_MAGIC)) == OLD_MAGIC
    result = _read_old(path) if old else _read_zip(path)
    if not isinstance(result, dict):
        raise Refused(f"it holds a {type(result).__name__}, expected a dictionary")
    return result


def _read_zip(path: Path) -> Any:
    members = stored_members(path)
    if "data.pkl" not in members:
        raise Refused("no member data.pkl, expected a checkpoint written by torch.save")
    if members["data.pkl"].size > LARGEST_PICKLE:
        raise Refused(f"data.pkl of {members['data.pkl'].size} bytes, expected at most {LARGEST_PICKLE}")
    mapped = np.memmap(path, mode="r").view(np.ndarray)

    def content(member: Member) -> np.ndarray:
        return mapped[member.start : member.start + member.size]

    order = content(members.get("byteorder", Member(0, 0)))[:16].tobytes()
    if order not in (b"little", b""):
        raise Refused(f"byte order {shown(order.decode('latin-1'))}, expected little")
    return Machine(NAMES, _member_reader(members, content)).run(content(members["data.pkl"]).tobytes())


def _member_reader(members: Mapping[str, Member], content: Callable[[Member], np.ndarray]) -> Callable[[object], Storage]:
    """Resolves a persistent id to the member data/<key>."""

    def storage(identifier: object) -> Storage:
        dtype, key, count = _storage_of(identifier, 5)
        member = members.get(f"data/{key}")
        if member is None:
            raise Refused(f"storage data/{key} is missing")
        if count * dtype.itemsize != member.size:
            raise Refused(f"storage data/{key} has {member.size} bytes, its tensor says {count} x {dtype}")
        return Storage(content(member), dtype)

    return storage


def _storage_of(identifier: object, length: int) -> tuple[np.dtype, str, int]:
    """Element type, key and element count in a persistent id ("storage", <storage class>, key, device, count, ...)."""
    if not isinstance(identifier, tuple) or len(identifier) != length or not _is_text(identifier[0], "storage"):
        raise Refused("a persistent id that names no storage")
    kind, key, device, count = identifier[1:5]
    if not isinstance(kind, Name) or kind.dtype is None or not isinstance(device, str):
        raise Refused("a storage of no known type")
    if not isinstance(key, str) or not re.fullmatch("[0-9]{1,20}", key):
        raise Refused(f"storage key {shown(key)}, expected a number")
    return kind.dtype, key, checked_size(count, f"storage {key}")


def _read_old(path: Path) -> Any:
    mapped = np.memmap(path, mode="r").view(np.ndarray)
    stream = io.BytesIO(mapped[:LARGEST_PICKLE].tobytes())
    stream.seek(len(OLD_MAGIC))
    storages: dict[str, Storage] = {}
    resolve = _old_storages(storages, mapped.size)
    version, machine, result, order = (Machine(NAMES, resolve).run_next(stream) for _ in range(4))
    if version != OLD_VERSION or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise Refused(f"the old format's version {shown(str(version)[:9])} or byte order, expected {OLD_VERSION} and little")
    if not isinstance(order, list) or any(not isinstance(key, str) for key in order) or sorted(order) != sorted(storages):
        raise Refused("its list of storages is not that of its tensors")
    start = stream.tell()
    for key in order:
        storage = storages[key]
        end = start + 8 + storage.raw.size
        if end > mapped.size or mapped[start : start + 8].view("<i8")[0] != storage.length:
            raise Refused(f"storage {key} is not where it should be (truncated?)")
        storage.raw[:] = mapped[start + 8 : end]
        start = end
    return result


def _old_storages(storages: dict[str, Storage], limit: int) -> Callable[[object], Storage]:
    """Makes the storages that persistent ids name, all zeros (the numbers come later), together within `limit` bytes."""

    def storage(identifier: object) -> Storage:
        dtype, key, count = _storage_of(identifier, 6)
        if isinstance(identifier, tuple) and identifier[5] is not None:
            raise Refused(f"storage {key} is a view of another")
        if key not in storages:
            if count * dtype.itemsize > limit - sum(other.raw.size for other in storages.values()):
                raise Refused(f"storage {key} of {count} x {dtype} does not fit into the file (truncated?)")
            storages[key] = Storage(np.zeros(count * dtype.itemsize, np.uint8), dtype)
        if (storages[key].dtype, storages[key].length) != (dtype, count):
            raise Refused(f"storage {key} has two types or sizes")
        return storages[key]

    return storage


def _is_text(value: object, expected: str) -> bool:
    return isinstance(value, str) and value == expected


def _rebuild_tensor(args: tuple) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None)."""
    if len(args) not in (6, 7) or not isinstance(args[0], Storage):
        raise Refused("a tensor that is not built from a storage")
    if len(args) == 7 and args[6]:
        raise Refused("a tensor with conjugate or negative bits")
    storage: Storage = args[0]
    offset = checked_size(args[1], "tensor offset")
    shape, strides = checked_sizes(args[2], "tensor shape"), checked_sizes(args[3], "strides")
    if len(shape) != len(strides):
        raise Refused(f"a tensor of {len(shape)} axes with {len(strides)} strides")
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    count, itemsize = math.prod(shape), storage.dtype.itemsize
    end = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
    # A tensor with more elements than its storage would repeat some: harmless to map, ruinous to copy.
    if max(end, count) > storage.length:
        raise Refused(f"a tensor of {count} elements up to element {end} in a storage of {storage.length}")
    return np.ndarray(shape, storage.dtype, storage.raw, offset * itemsize, [itemsize * step for step in strides])


def _rebuild_parameter(args: tuple) -> np.ndarray:
    """torch._utils._rebuild_parameter(tensor, requires_grad, hooks)."""
    if len(args) != 3 or not isinstance(args[0], np.ndarray):
        raise Refused("a parameter that is not built from a tensor")
    return args[0]


def _make_size(args: tuple) -> tuple[int, ...]:
    if len(args) != 1:
        raise Refused("torch.Size: expected one argument")
    return tuple(checked_sizes(args[0], "torch.Size"))


NAMES: dict[str, Name] = {
    **{f"torch {name}": Name(dtype=dtype) for name, dtype in STORAGES.items()},
    "torch._utils _rebuild_tensor_v2": Name(build=_rebuild_tensor),
    "torch._utils _rebuild_parameter": Name(build=_rebuild_parameter),
    "torch Size": Name(build=_make_size),
    "collections OrderedDict": Name(build=make_empty(dict)),
    "argparse Namespace": Name(build=make_empty(Record)),
}
