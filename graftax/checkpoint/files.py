"""Files: written whole or not at all, and identified by their SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np

from graftax.errors import BadInput


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the name `path` once the block has ended well.

    A reader sees the old file or the new one, never a part. On any failure the temporary file is removed and `path` is
    what it was. Raises `BadInput` where the folder does not exist or cannot be written.
    """
    if not path.parent.is_dir():
        raise BadInput(f"{path}: folder {path.parent} does not exist")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except (PermissionError, IsADirectoryError) as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)


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
