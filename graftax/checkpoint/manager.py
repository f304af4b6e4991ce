"""Checkpoints of a training run: orbax's `CheckpointManager` behind a few methods, with damage found before it is loaded.

A step's folder holds the state (a flat dict of arrays, so that what is on disk does not depend on optimiser classes) and
a JSON record. Orbax writes both in the background and commits them when they are complete; just before that they are
sealed (`upkeep`). Opening the folder of a run compares the newest checkpoint with its seal and falls back to an older one
where they differ.
"""

from __future__ import annotations

import base64
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from graftax.checkpoint import upkeep
from graftax.checkpoint.files import storage_trouble
from graftax.checkpoint.hosts import gather
from graftax.checkpoint.hush import hush
from graftax.checkpoint.paths import work_path
from graftax.checkpoint.retention import Retention
from graftax.errors import BadInput


class Checkpoints:
    """The checkpoints in `folder` (made if need be; local, mounted or gs://), of which `retention` says what stays.

    Opening it removes what a killed save left, and moves a newest checkpoint whose files changed since they were written
    to `damaged/`, with a warning. With several processes, all make the same calls, and process 0 decides. Raises
    `BadInput` where `folder` is a file, cannot be written, or differs between the hosts. One run writes to a folder at a
    time.
    """

    def __init__(self, folder: str | os.PathLike[str], retention: Retention | None = None) -> None:
        self.folder = work_path(folder)
        self._retention = retention or Retention()
        hush()
        upkeep.open_folder(self.folder)
        self._saving, self._failed = 0, False
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._retention,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "record": ocp.JsonCheckpointHandler()},
        )
        if self._retention.best:
            self._read_scores()

    def latest(self) -> int | None:
        """The newest step that is saved or being saved, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step with the best score among those on disk, or None."""
        return self._retention.best_of(list(self._manager.all_steps()))

    def save(self, step: int, state: Any, extra: Mapping[str, Any], data_state: Any, score: float | None = None) -> None:
        """Save `state` (a pytree of arrays) with two JSON values; `data_state` may also be bytes, and is each process's
        own. `score` is what `retention` compares.

        The arrays are copied before this returns, so the next step may donate them; the files are written in the
        background. A failure of the save before is raised here, as `BadInput` where the storage is full or read-only.
        Raises `BadInput` too where `step` is not after the latest.
        """
        self.wait()
        record = _encode(extra, data_state, score)
        latest = self.latest()
        if latest is not None and step <= latest:
            raise BadInput(f"step {step}: expected more than {latest}, the latest checkpoint in {self.folder}")
        self._saving = step
        if score is not None:
            self._retention.scores[step] = score
        flat = {path: jnp.asarray(leaf) for path, leaf in _paths(state).items()}
        args = ocp.args.Composite(state=ocp.args.StandardSave(flat), record=ocp.args.JsonSave(record))
        with self._storage():
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
            record = self._record(step)
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
        return state, record["extra"], _decode(where, record["positions"])

    def wait(self) -> None:
        """Return when everything is on disk; raises what went wrong in the background, as `save` does."""
        with self._storage():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait and let go of the folder; of a save that failed nothing stays."""
        try:
            with self._storage():
                self._manager.close()
        finally:
            if self._failed and jax.process_index() == 0:
                upkeep.remove_unfinished(self.folder)

    def _record(self, step: int) -> dict[str, Any]:
        return self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]

    def _read_scores(self) -> None:
        for step in self._manager.all_steps():
            try:
                score = self._record(step)["score"]
            except Exception as error:  # an older checkpoint than the one to resume from
                warnings.warn(f"checkpoint {step} in {self.folder}: no score can be read ({error})", stacklevel=3)
                continue
            if score is not None:
                self._retention.scores[step] = score

    def _seal(self) -> None:
        """Called by orbax when all files of a save are written, before it is committed."""
        if jax.process_index() == 0:
            upkeep.seal(self.folder, self._saving)

    @contextmanager
    def _storage(self) -> Iterator[None]:
        """Say in one line that the storage takes no more."""
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise what they like
            self._failed = True
            if not (reason := storage_trouble(error)):
                raise
            raise BadInput(
                f"{self.folder}: step {self._saving} cannot be saved ({reason}); the checkpoints before it are intact"
            ) from error

    @staticmethod
    def _check(where: Any, wanted: Mapping[str, jax.ShapeDtypeStruct], metadata: Any) -> None:
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


def _encode(extra: Mapping[str, Any], data: Any, score: float | None) -> dict[str, Any]:
    kind = "bytes" if isinstance(data, bytes) else "json"
    value = base64.b64encode(data).decode() if isinstance(data, bytes) else data
    record = {"extra": dict(extra), "positions": {"kind": kind, "value": value}, "score": score}
    try:
        record = json.loads(json.dumps(record))
    except (TypeError, ValueError) as error:
        raise BadInput(f"checkpoint record: {error}, expected JSON values") from None
    everyones = gather(record["positions"])
    # A position that all share fits any number of processes, others only as many as wrote them.
    record["positions"] = everyones[:1] if all(one == everyones[0] for one in everyones) else everyones
    return record


def _decode(where: Any, everyones: list[Mapping[str, Any]]) -> Any:
    if len(everyones) not in (1, jax.process_count()):
        raise BadInput(
            f"{where}: data positions of {len(everyones)} processes, this run has {jax.process_count()}; expected as many"
        )
    data = everyones[0 if len(everyones) == 1 else jax.process_index()]
    return base64.b64decode(data["value"]) if data["kind"] == "bytes" else data["value"]
