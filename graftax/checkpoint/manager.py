"""Checkpoints of a training run: orbax's `CheckpointManager` behind five methods, with damage found before it is loaded.

A step's folder holds the state (a flat dict of arrays, so that what is on disk does not depend on optimiser classes) and
a JSON record. Orbax writes both in the background under a temporary name and renames the folder when it is complete;
just before that, `_Seal` lists the files with their sizes and checksums. Opening the folder of a run compares the newest
checkpoint with its seal and falls back to an older one where they differ.
"""

from __future__ import annotations

import base64
import json
import shutil
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from graftax.errors import BadInput

ITEMS = ("state", "record")
"""Sub-folders of a checkpoint. What orbax keeps beside them changes after sealing (time of the commit)."""

SEAL = "seal.json"
DAMAGED = "damaged"
"""Sub-folder that damaged checkpoints are moved to: nothing is deleted."""

_TEMPORARY = ".orbax-checkpoint-tmp"
"""How orbax names the folder of an unfinished save: the step, then this."""

_PIECE = 1 << 20


class Checkpoints:
    """The checkpoints in `folder` (made if need be), at most the newest `keep`.

    Opening it removes what a killed save left, and moves a newest checkpoint whose files changed since they were written
    to `damaged/`, with a warning. Raises `BadInput` where `folder` is a file or an address such as gs://, or `keep` is
    below 1. One run writes to a folder at a time.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder = Path(folder).absolute()
        if keep < 1:
            raise BadInput(f"keep: got {keep}, expected 1 or more")
        if self.folder.exists() and not self.folder.is_dir():
            raise BadInput(f"{self.folder}: a file, expected a folder of checkpoints")
        if "://" in str(folder):
            raise BadInput(f"{folder}: expected a local or mounted folder, not an address")
        if jax.process_index() == 0:
            _remove_left_overs(self.folder)
            _set_damaged_aside(self.folder)
        multihost_utils.sync_global_devices("graftax: checkpoints verified")
        self._saving = 0
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "record": ocp.JsonCheckpointHandler()},
        )

    def latest(self) -> int | None:
        """The newest step that is saved or being saved, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, extra: Mapping[str, Any], data_state: Any) -> None:
        """Save `state` (a pytree of arrays) with two JSON values; `data_state` may also be bytes.

        The arrays are copied before this returns, so the next step may donate them; the files are written in the
        background. A failure of the save before is raised here. Raises `BadInput` where `step` is not after the latest.
        """
        self.wait()
        record = _encode(extra, data_state)
        latest = self.latest()
        if latest is not None and step <= latest:
            raise BadInput(f"step {step}: expected more than {latest}, the latest checkpoint in {self.folder}")
        self._saving = step
        flat = {path: jnp.asarray(leaf) for path, leaf in _paths(state).items()}
        args = ocp.args.Composite(state=ocp.args.StandardSave(flat), record=ocp.args.JsonSave(record))
        if not self._manager.save(step, args=args):
            raise RuntimeError(f"step {step}: orbax declined to save into {self.folder}")

    def restore(self, step: int, abstract_state: Any, vet: Callable[[Any], object] = bool) -> tuple[Any, Any, Any]:
        """(state, extra, data_state) of `step`.

        `abstract_state` is a pytree of arrays or `jax.ShapeDtypeStruct`s; the state comes back in its structure with its
        shardings. `vet(extra)` may refuse before any array is looked at. Raises `BadInput` naming the paths where shapes,
        types or structure differ from what is saved, and where the checkpoint does not exist or cannot be read.
        """
        self.wait()
        where = self.folder / str(step)
        if step not in self._manager.all_steps():
            raise BadInput(f"{where}: no such checkpoint, expected one of {sorted(self._manager.all_steps())}")
        wanted = {path: _abstract(leaf) for path, leaf in _paths(abstract_state).items()}
        try:
            record = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
            vet(record["extra"])
            self._check(where, wanted, self._manager.item_metadata(step)["state"])
            args = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
            restored = self._manager.restore(step, args=args)["state"]
        except BadInput:
            raise
        except Exception as error:  # orbax and tensorstore raise what they like on damaged files
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise BadInput(f"{where}: cannot be read ({reason[0][:200]}); move it away to use an older one") from error
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), [restored[path] for path in wanted])
        return state, record["extra"], _decode(record["data"])

    def wait(self) -> None:
        """Return when everything is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait and let go of the folder."""
        self._manager.close()

    def _seal(self) -> None:
        """Called by orbax when all files of a save are written, before the folder gets its final name."""
        if jax.process_index() != 0:
            return
        folders = list(self.folder.glob(f"{self._saving}{_TEMPORARY}*"))
        if len(folders) != 1:  # raised by the next `wait`: better no checkpoint than one that looks damaged
            raise RuntimeError(f"step {self._saving}: {len(folders)} unfinished saves in {self.folder}, expected one")
        files = [file for item in ITEMS for file in (folders[0] / item).rglob("*") if file.is_file()]
        sums = {str(file.relative_to(folders[0])): _checksum(file) for file in files}
        (folders[0] / SEAL).write_text(json.dumps(sums))

    @staticmethod
    def _check(where: Path, wanted: Mapping[str, jax.ShapeDtypeStruct], metadata: Any) -> None:
        saved = {path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in dict(metadata.tree).items()}
        asked = {path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in wanted.items()}
        wrong = [
            f"{path} is {_shown(saved.get(path))}, expected {_shown(asked.get(path))}"
            for path in sorted(saved.keys() | asked.keys())
            if saved.get(path) != asked.get(path)
        ]
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise BadInput(f"{where}: {'; '.join(wrong[:5])}{more}")


def _shown(leaf: tuple[tuple[int, ...], str] | None) -> str:
    return f"{leaf[1]} {leaf[0]}" if leaf else "absent"


def _paths(tree: Any) -> dict[str, Any]:
    """Leaves by path, "opt_state/0/mu/blocks/00/...", in tree order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/") or "value": leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _encode(extra: Mapping[str, Any], data: Any) -> dict[str, Any]:
    kind = "bytes" if isinstance(data, bytes) else "json"
    value = base64.b64encode(data).decode() if isinstance(data, bytes) else data
    record = {"extra": dict(extra), "data": {"kind": kind, "value": value}}
    try:
        return json.loads(json.dumps(record))
    except (TypeError, ValueError) as error:
        raise BadInput(f"checkpoint record: {error}, expected JSON values") from None


def _decode(data: Mapping[str, Any]) -> Any:
    return base64.b64decode(data["value"]) if data["kind"] == "bytes" else data["value"]


def _remove_left_overs(folder: Path) -> None:
    """Orbax would do this too, but in the background, while the first save is already under way."""
    for left in folder.glob(f"*{_TEMPORARY}*"):
        shutil.rmtree(left)


def _set_damaged_aside(folder: Path) -> None:
    """Move checkpoints that are not as they were sealed to `damaged/`, from the newest to the first sound one."""
    steps = sorted((int(p.name) for p in folder.glob("[0-9]*") if p.name.isdigit()), reverse=True)
    for step in steps:
        reason = _damage(folder / str(step))
        if not reason:
            return
        target = folder / DAMAGED / str(step)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(target)
        warnings.warn(f"checkpoint {target.name} in {folder}: damaged ({reason}), moved to {target}", stacklevel=3)


def _damage(checkpoint: Path) -> str:
    """What differs from the seal, or "" where nothing does."""
    try:
        sums = json.loads((checkpoint / SEAL).read_text())
        for name, expected in sums.items():
            if _checksum(checkpoint / name) != expected:
                return f"{name} has changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"cannot be read: {error}"
    return ""


def _checksum(file: Path) -> list[int]:
    """[bytes, CRC-32]: finds damage by chance, not by intent."""
    size, crc = 0, 0
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            size, crc = size + len(piece), zlib.crc32(piece, crc)
    return [size, crc]
