"""The folder of a run's checkpoints between runs: can it be written, what did a killed save leave, what is damaged?

When all files of a checkpoint are written, `seal` lists them with sizes and checksums. Only then does the checkpoint count
as complete: a local folder gets its final name, one in a bucket a file that marks it as committed.
"""

from __future__ import annotations

import json
import os
import uuid
import warnings

from graftax.checkpoint.files import storage_trouble
from graftax.checkpoint.hosts import decide, gather
from graftax.checkpoint.paths import WorkPath, checksum, children, files_below, is_remote, move, remove
from graftax.errors import BadInput

ITEMS = ("state", "record")
"""Sub-folders of a checkpoint. What orbax keeps beside them changes after sealing (time of the commit)."""

SEAL = "seal.json"
DAMAGED = "damaged"
"""Sub-folder that damaged checkpoints are moved to: nothing is deleted."""

_TEMPORARY = ".orbax-checkpoint-tmp"
"""How orbax names the local folder of an unfinished save: the step, then this."""

_COMMITTED = "commit_success.txt"
"""In a bucket, where folders cannot be renamed, orbax marks a complete checkpoint by this file."""

_CLAIM = ".claim-"


def open_folder(folder: WorkPath) -> None:
    """Make `folder` ready for a run: made if need be, left-overs removed, damaged checkpoints set aside with a warning.

    Called by all processes; process 0 does the work. Raises `BadInput` on all of them where the folder is a file, cannot
    be written, or is not the same one for all.
    """
    name = decide(lambda: _claim(folder))
    seen = gather((folder / name).exists())
    decide(lambda: _tidy(folder))
    if not all(seen):
        raise BadInput(f"{folder}: not the same folder on all hosts, expected shared storage or gs://BUCKET/FOLDER")


def seal(folder: WorkPath, step: int) -> None:
    """List the files of the one unfinished save of `step`. Raises RuntimeError where there is not just one: better no
    checkpoint than one that looks damaged."""
    found = [path for path in children(folder) if path.name == str(step) or path.name.startswith(f"{step}{_TEMPORARY}")]
    if len(found) != 1:
        raise RuntimeError(f"step {step}: {len(found)} unfinished saves in {folder}, expected one")
    files = [file for item in ITEMS for file in files_below(found[0] / item)]
    sums = {os.fspath(file.relative_to(found[0])): checksum(file) for file in files}
    (found[0] / SEAL).write_text(json.dumps(sums))


def damage(checkpoint: WorkPath) -> str:
    """What differs from the seal, or "" where nothing does."""
    try:
        sums = json.loads((checkpoint / SEAL).read_text())
        for name, expected in sums.items():
            if checksum(checkpoint / name) != expected:
                return f"{name} has changed"
    except FileNotFoundError as error:
        return f"{os.path.basename(error.filename or str(error))} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"cannot be read: {error}"
    return ""


def remove_unfinished(folder: WorkPath) -> None:
    """Delete what a save that failed or was killed has left. No save may be under way."""
    for path in children(folder):
        if _TEMPORARY in path.name or (is_remote(path) and path.name.isdigit() and not (path / _COMMITTED).exists()):
            remove(path)


def _claim(folder: WorkPath) -> str:
    """Write a small file that the other processes will look for; its name."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: a file, expected a folder of checkpoints")
    mark = folder / f"{_CLAIM}{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(folder.name)
    except Exception as error:  # of the system or of a bucket's client
        reason = storage_trouble(error) or (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise BadInput(f"{folder}: cannot be written ({reason})") from error
    return mark.name


def _tidy(folder: WorkPath) -> None:
    """Orbax would remove left-overs too, but in the background, while the first save is already under way."""
    for path in children(folder):
        if path.name.startswith(_CLAIM):
            path.unlink()
    remove_unfinished(folder)
    _set_damaged_aside(folder)


def _set_damaged_aside(folder: WorkPath) -> None:
    """Move checkpoints that are not as they were sealed to `damaged/`, from the newest to the first sound one."""
    for step in sorted((int(path.name) for path in children(folder) if path.name.isdigit()), reverse=True):
        reason = damage(folder / str(step))
        if not reason:
            return
        target = folder / DAMAGED / str(step)
        move(folder / str(step), target)
        warnings.warn(f"checkpoint {step} in {folder}: damaged ({reason}), moved to {target}", stacklevel=2)
