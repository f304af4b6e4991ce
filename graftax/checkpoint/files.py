"""Files and folders: written whole or not at all, and identified by their SHA-256."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np

from graftax import interrupts
from graftax.errors import BadInput

_SHOWN = 100
"""Letters of a file's name that its temporary folder's name shows: that must not become too long where the file's is not."""

_TROUBLES = (
    "no space left on device", "read-only file system", "permission denied", "disk quota exceeded", "file too large",
    "operation not permitted", "input/output error", "file name too long", "forbidden", "insufficient authentication",
)  # fmt: skip
"""What the system, the libraries that write for us and Google's storage say where nothing can be written."""


@contextlib.contextmanager
def replacing(path: Path, named: Path | None = None) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the name `path` once the block has ended well.

    A reader sees the old file or the new one, never a part. On any failure nothing is left behind and `path` is what it
    was. Raises `BadInput` where the folder does not exist, and where nothing can be written, be it in the block; it names
    `named` (None: `path`).
    """
    if not _is_folder(path.parent):
        raise BadInput(f"{path}: folder {path.parent} does not exist")
    with _beside(path, named) as temporary:
        yield temporary
        temporary.chmod(temporary.parent.stat().st_mode & 0o666)  # some libraries give their files to the owner alone
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A temporary folder to write to, whose files go to `folder` (made if need be) once the block has ended well.

    A folder that was not there appears whole. One that was keeps its other files; on any failure it is what it was. Raises
    `BadInput` where nothing can be written, be it in the block.
    """
    there = _is_folder(folder)
    if not there and folder.exists():
        raise BadInput(f"{folder}: a file, expected a folder")
    with made(folder.parent), _beside(folder / "new" if there else folder, folder) as temporary:
        temporary.mkdir()
        yield temporary
        if there:
            _move_files(temporary, folder)
        else:
            temporary.rename(folder)


@contextlib.contextmanager
def making(folder: Path) -> Iterator[Path]:
    """`folder` itself where there is one, to be changed with care; else as `filling`."""
    with contextlib.nullcontext(folder) if _is_folder(folder) else filling(folder) as place:
        yield place


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """While the block lasts there is a `folder`; what was made for it and is empty afterwards is removed again.

    Raises `BadInput` where it cannot be made.
    """
    new = _make(folder, folder)
    try:
        yield
    finally:
        _unmake(new)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """An error of the block that says that nothing can be written is raised as `BadInput`, naming `path` alone."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # the libraries that write for us raise what they like
        if not (reason := storage_trouble(error)):
            raise
        raise BadInput(f"{os.fspath(path)}: cannot be written ({reason})") from error


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder in the system's place for them, gone after the block."""
    with tempfile.TemporaryDirectory() as folder, interrupts.unfinished(Path(folder)):
        yield Path(folder)


def storage_trouble(error: BaseException | None) -> str:
    """Why nothing can be written, in few words, if that is what `error` or a cause of it says; "" otherwise."""
    while error is not None:
        found = next((words for words in _TROUBLES if words in str(error).lower()), "")
        if found:
            return found
        error = error.__cause__ or error.__context__
    return ""


def remove_strays(path: Path) -> None:
    """Delete what a process that was killed while it wrote `path` has left. For the only one who writes it."""
    for stray in path.parent.glob(f".{glob.escape(path.name[:_SHOWN])}.*.tmp"):
        shutil.rmtree(stray, ignore_errors=True)


@contextlib.contextmanager
def _beside(path: Path, named: Path | None = None) -> Iterator[Path]:
    """A name for what will become `path`, in a folder of its own beside it that is gone after the block.

    Of its own, since some libraries write to further files first, which are nobody's when the process ends meanwhile.
    Errors name `named` (None: `path`), never what is temporary.
    """
    named = named or path
    name = Path(os.path.abspath(path)).name  # "." has none
    folder = path.parent / f".{name[:_SHOWN]}.{uuid.uuid4().hex[:8]}.tmp"
    with interrupts.unfinished(folder), writing(named):
        _make(folder, named)
        try:
            yield folder / name
        except BadInput as error:
            raise BadInput(str(error).replace(str(folder / name), str(named))) from error.__cause__
        except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
            raise BadInput(f"{named}: cannot be written ({error.strerror})") from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _move_files(source: Path, folder: Path) -> None:
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)


def _make(folder: Path, what: Path) -> list[Path]:
    """Make a folder with those above it; returns those made, the innermost first. An error names `what`."""
    new: list[Path] = []
    try:
        for one in reversed((folder, *folder.parents)):
            if not one.is_dir():
                one.mkdir(exist_ok=True)
                new.insert(0, one)
    except OSError as error:
        _unmake(new)
        raise BadInput(f"{what}: cannot be written ({error.strerror})") from None
    return new


def _unmake(folders: list[Path]) -> None:
    for one in folders:
        with contextlib.suppress(OSError):  # as a rule it is not empty
            one.rmdir()


def _is_folder(path: Path) -> bool:
    with writing(path):  # Python says of a name that is too long neither yes nor no
        return path.is_dir()


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_arrays(tree: Any) -> str:
    """Hexadecimal SHA-256 over the bytes of all arrays of a tree, in the tree's order."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def existing_file(path: str | Path) -> Path:
    """`path` as a `Path` to a regular file; raises `BadInput` otherwise."""
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    return path


def _flush(path: Path) -> None:
    """Ask the system to have a file, or the names in a folder, on disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def demo_path(name: str) -> Path:
    """Path of a shipped file or folder of the demo: "dit", "autoencoder.safetensors", "classifier.safetensors"."""
    return Path(str(resources.files("graftax.data").joinpath("demo", name)))
