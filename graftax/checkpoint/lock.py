"""One folder, one run: whoever writes to a folder or file holds it, and no other process gets it meanwhile.

The system's lock on a small file `.lock` in the folder, or `.NAME.lock` beside what is not there yet. The system lets go of
it when the process ends, however it ends; a file that a killed process leaves behind locks nothing. On NFS it holds between
hosts as well.

Processes that `jax.distributed` has joined are one owner: the first of them holds the lock, and all are refused together.

In a bucket (gs://) nothing is locked: an object there outlives a process that is killed, and a lease that runs out could not
tell a dead owner from one that waits for its devices. There, one run per folder is up to whoever starts them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax

from graftax import interrupts
from graftax.checkpoint.files import made, writing
from graftax.checkpoint.hosts import decide
from graftax.checkpoint.paths import is_remote, work_path
from graftax.errors import BadInput

FILE = ".lock"

_TRIES = 100
"""Each is lost to an owner that ended at that very moment."""

_held: set[str] = set()
"""What this process holds: the parts of a run may hold its folder once more."""


@contextlib.contextmanager
def holding(path: str | os.PathLike[str] | None, *, folder: bool = False) -> Iterator[None]:
    """While the block lasts no other process can hold `path` (None: nothing). This process can, as often as it likes.

    `folder`: make it if need be; it is removed again if it is left empty. Raises `BadInput`, on all hosts, where another
    process holds `path`, naming that process and its host, and where nothing can be written there.
    """
    key = None if path is None or is_remote(work_path(path)) else os.path.realpath(path)
    if path is None or key is None or key in _held:
        yield
        return
    with contextlib.ExitStack() as stack:

        def take() -> None:
            stack.enter_context(_holding(Path(path), folder))

        # To ask how many processes there are would start the devices: a command that is refused need not.
        decide(take) if jax.distributed.is_initialized() else take()
        _held.add(key)
        stack.callback(_held.discard, key)
        yield


@contextlib.contextmanager
def _holding(path: Path, folder: bool) -> Iterator[None]:
    with made(path if folder else path.parent):
        file = _file(path)
        number = _lock(file, path)
        with interrupts.unfinished(file):  # not before it is ours
            try:
                yield
            finally:
                file.unlink(missing_ok=True)  # before letting go: who has opened it by now looks whether it is still there
                os.close(number)


def _file(path: Path) -> Path:
    with writing(path):
        if path.is_dir():
            return path / FILE
    return path.parent / f".{Path(os.path.abspath(path)).name[:100]}{FILE}"


def _lock(file: Path, path: Path) -> int:
    """The open file, locked, with this process's name in it."""
    for _ in range(_TRIES):
        try:
            number = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise BadInput(f"{path}: cannot be written ({error.strerror})") from None
        try:
            _ask(number, path)
            if _has_its_name(number, file):
                _sign(number, file, path)
                return number
        except BaseException:
            os.close(number)
            raise
        os.close(number)
    raise BadInput(f"{path}: cannot be locked ({file} is another file each time)")


def _ask(number: int, path: Path) -> None:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(number, 200).decode(errors="replace").strip() or "another process"
        raise BadInput(f"{path}: in use by {owner}, expected one run at a time") from None
    except OSError as error:  # some network file systems have no locks
        warnings.warn(f"{path}: cannot be locked ({error.strerror}); start no other run on it", stacklevel=2)


def _has_its_name(number: int, file: Path) -> bool:
    """Whether an owner that ended meanwhile has not removed the file between being opened and being locked."""
    try:
        return os.path.samestat(os.fstat(number), file.stat())
    except FileNotFoundError:
        return False


def _sign(number: int, file: Path, path: Path) -> None:
    try:
        os.ftruncate(number, 0)
        os.pwrite(number, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
    except OSError as error:
        file.unlink()
        raise BadInput(f"{path}: cannot be written ({error.strerror})") from None
