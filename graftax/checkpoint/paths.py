"""Folders that a run writes to: local (or mounted) ones and gs:// addresses behind one interface, `epath.Path`.

etils' `epath.Path` has pathlib's methods for both. What a bucket does otherwise is here: a name may hold something else
than it did when this process last looked, files do not grow, folders are removed and moved file by file, and every file
has a checksum already.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath
from etils.epath import backend

from graftax.checkpoint.files import made, replacing, scratch, writing
from graftax.errors import BadInput
from graftax.models.arguments import as_path

REMOTE = "gs://"
WorkPath = epath.Path
"""A path that is local or in a bucket."""

_PIECE = 1 << 20


def work_path(path: str | os.PathLike[str]) -> WorkPath:
    """`path` as an absolute local path or as an address in a bucket. Nothing is read or written.

    Raises `BadInput` on addresses other than gs://, and on these where the package gcsfs is missing.
    """
    text = as_path(path)
    if text.startswith("gs:/"):
        text = REMOTE + text.removeprefix("gs:").lstrip("/")  # `Path` makes one slash of two
        if importlib.util.find_spec("gcsfs") is None:
            raise BadInput(f"{text}: needs the package gcsfs, expected: pip install 'graftax[gcs]'")
        import fsspec.config

        # Other hosts write to the same folder, and tensorstore does beside gcsfs: listings must not be remembered.
        fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
        return epath.Path(text)
    if "://" in text:
        raise BadInput(f"{text}: expected a local or mounted folder, or an address gs://BUCKET/FOLDER")
    path = epath.Path(Path(text).absolute())
    if "://" in os.fspath(path):  # etils keeps /gs/ for itself
        raise BadInput(f"{text}: taken for the address {path}, expected a mounted folder of another name")
    return path


def is_remote(path: WorkPath) -> bool:
    """Whether `path` is an address in a bucket."""
    return os.fspath(path).startswith(REMOTE)


def append(path: WorkPath, text: str) -> None:
    """Add `text` to a small file, made if need be. Not for several writers at once."""
    if not is_remote(path):
        with writing(path), Path(path).open("a") as file:
            file.write(text)
        return
    path.write_text((path.read_text() if path.exists() else "") + text)


def write_text(path: WorkPath, text: str) -> None:
    """Make or replace a small file, its folder made if need be: a reader sees the old text or the new."""
    write_bytes(path, text.encode())


def write_bytes(path: WorkPath, content: bytes) -> None:
    """As `write_text`, of bytes."""
    if is_remote(path):
        path.write_bytes(content)
        return
    with made(Path(path.parent)), replacing(Path(path)) as temporary:
        temporary.write_bytes(content)


def children(folder: WorkPath) -> list[WorkPath]:
    """What is in a folder; nothing where there is no such folder, as in a bucket where it is empty."""
    return list(folder.iterdir()) if folder.exists() else []


def files_below(folder: WorkPath) -> list[WorkPath]:
    """All files in a folder and its sub-folders; none where there is no such folder."""
    if is_remote(folder):
        return [epath.Path(REMOTE + name) for name in _bucket(folder).find(os.fspath(folder))]
    return [epath.Path(file) for file in sorted(Path(folder).rglob("*")) if file.is_file()]


def checksum(file: WorkPath) -> list[Any]:
    """[bytes, CRC-32] of a file: finds damage by chance, not by intent. Raises FileNotFoundError.

    In a bucket it is the store's own CRC-32C, so that nothing is fetched.
    """
    if is_remote(file):
        facts = _bucket(file).info(os.fspath(file))
        return [facts["size"], facts["crc32c"]]
    size, crc = 0, 0
    with Path(file).open("rb") as stream:
        while piece := stream.read(_PIECE):
            size, crc = size + len(piece), zlib.crc32(piece, crc)
    return [size, crc]


def remove(folder: WorkPath) -> None:
    """Delete a folder with all that is in it, also what others delete at the same time: a writer that failed its locks."""
    while folder.exists():
        try:
            folder.rmtree()
        except FileNotFoundError:
            continue
    if is_remote(folder):
        folder.rmtree(missing_ok=True)  # the first round leaves what was below an object named like a folder


def move(folder: WorkPath, target: WorkPath) -> None:
    """Give a folder another name; a folder of that name is replaced."""
    if target.exists():
        remove(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not is_remote(folder):
        folder.rename(target)
        return
    for file in files_below(folder):
        file.copy(target / os.fspath(file).removeprefix(os.fspath(folder)).lstrip("/"), overwrite=True)
    remove(folder)


@contextlib.contextmanager
def local_copy(path: str | os.PathLike[str]) -> Iterator[Path]:
    """`path` itself, or a file or folder of a bucket fetched for as long as the block lasts. Raises `BadInput` where it is
    not there."""
    source = work_path(path)
    if not is_remote(source):
        yield Path(path)
        return
    if not source.exists():
        raise BadInput(f"{source}: no such file or folder")
    with scratch() as temporary:
        fetched = temporary / source.name
        _bucket(source).get(os.fspath(source), str(fetched), recursive=True)
        yield fetched


@contextlib.contextmanager
def published(folder: str | os.PathLike[str], last: str) -> Iterator[Path]:
    """A folder to write to: `folder` itself, or one whose files go to a bucket when the block has ended well, the file
    `last` after all others."""
    target = work_path(folder)
    if not is_remote(target):
        yield Path(folder)
        return
    with scratch() as temporary:
        yield temporary
        for file in sorted((file for file in temporary.rglob("*") if file.is_file()), key=lambda f: f.name == last):
            _bucket(target).put_file(str(file), os.fspath(target / file.relative_to(temporary)))


def _bucket(path: WorkPath) -> Any:
    """The fsspec file system of an address, the very one that `epath` uses."""
    return backend.fsspec_backend.fs(path)
