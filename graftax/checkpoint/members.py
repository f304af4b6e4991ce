"""The members of an untrusted zip file, as byte ranges of that file. Only stored (uncompressed) members are accepted.

Stored members can be memory-mapped, and a file without compression cannot unfold into more than it is: zip bombs are
refused before anything is read.
"""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

LARGEST_READ = 8 << 20
"""Bytes that `zipfile` may read at once: a directory of some 100,000 members. Its entries are what costs memory."""

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_MALFORMED = (zipfile.BadZipFile, struct.error, ValueError, OverflowError, NotImplementedError, EOFError, IndexError)


class Refused(Exception):
    """Why a file is not accepted. The reader, which knows the file's name, turns it into `BadInput`."""


@dataclass(frozen=True)
class Member:
    """A byte range [start, start + size) of the file."""

    start: int
    size: int


def shown(text: object, longest: int = 60) -> str:
    """Untrusted text for an error message: short, on one line, without control characters."""
    if not isinstance(text, str):
        return type(text).__name__
    return ascii(text[:longest]) + ("..." if len(text) > longest else "")


class _Bounded(io.FileIO):
    """A file that refuses to read much at once, whatever size a zip directory claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        here = self.tell()
        left = max(0, self.seek(0, io.SEEK_END) - here)
        self.seek(here)
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > LARGEST_READ:
            raise Refused(f"a zip directory of {wanted} bytes, expected at most {LARGEST_READ}")
        return super().read(wanted) or b""


def stored_members(path: Path) -> dict[str, Member]:
    """Name -> byte range of every member, names without the archive's one top folder ("data.pkl", "data/0").

    Raises `Refused` for what is no zip file or truncated, for compressed, encrypted, repeated, overlapping or
    out-of-range members, and for names that climb out of the top folder.
    """
    with _Bounded(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:  # pyright: ignore[reportArgumentType]
                infos = archive.infolist()
        except _MALFORMED as error:
            raise Refused(_not_a_zip(path, error)) from None
        limit = path.stat().st_size
        members = {info.filename: _member(file, info, limit) for info in infos}
    if len(members) != len(infos):
        raise Refused("two zip members have one name")
    _check_disjoint(members)
    return _without_top_folder(members)


def _member(file: io.FileIO, info: zipfile.ZipInfo, limit: int) -> Member:
    name = info.filename
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise Refused(f"zip member {shown(name)} is compressed, expected stored members as torch.save writes them")
    if info.flag_bits & 1:
        raise Refused(f"zip member {shown(name)} is encrypted")
    file.seek(max(0, info.header_offset))
    header = file.read(_LOCAL_HEADER.size)
    if info.header_offset < 0 or len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise Refused(f"zip member {shown(name)} has no header in the file (truncated?)")
    *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    if start + info.file_size > limit:
        raise Refused(f"zip member {shown(name)} of {info.file_size} bytes ends beyond the file (truncated?)")
    return Member(start, info.file_size)


def _check_disjoint(members: dict[str, Member]) -> None:
    end = 0
    for name, member in sorted(members.items(), key=lambda item: (item[1].start, item[1].size)):
        if member.start < end:
            raise Refused(f"zip member {shown(name)} overlaps another")
        end = member.start + member.size


def _without_top_folder(members: dict[str, Member]) -> dict[str, Member]:
    inner: dict[str, Member] = {}
    tops = set()
    for name, member in members.items():
        top, *rest = name.split("/")
        if not top or not rest or any(part in ("", ".", "..") for part in [top, *rest]) or "\\" in name:
            raise Refused(f"zip member name {shown(name)}, expected <archive>/<member>")
        tops.add(top)
        inner["/".join(rest)] = member
    if len(tops) > 1:
        raise Refused(f"{len(tops)} top folders in the zip file, expected one")
    return inner


def _not_a_zip(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    if start[:1] == b"\x80":
        return "a bare pickle, expected a checkpoint written by torch.save"
    if start != b"PK\x03\x04":
        return "not a PyTorch checkpoint (no zip file)"
    return f"damaged zip file ({shown(str(error))}; truncated?)"
