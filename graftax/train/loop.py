"""`fit`: the one training loop. It knows nothing of models: a `Job` brings the state and the step.

Re-running the same command continues where the last checkpoint left off, bit for bit: the key of a step depends on the
seed and the step's number alone, and the position in the data is saved with the state it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from graftax.errors import BadInput, NonFinite, Preempted
from graftax.progress import Progress
from graftax.train.record import MetricsFile, Window
from graftax.train.sharding import put_batch
from graftax.train.signals import StopRequest

if TYPE_CHECKING:
    from graftax.checkpoint.manager import Checkpoints

S = TypeVar("S")
Batch = Mapping[str, Any]  # name -> (b, ...) array
Metrics = Mapping[str, Any]  # name -> () float32


class Batches(Protocol):
    """Endless source of host batches whose position is a JSON value."""

    def __next__(self) -> Batch: ...
    def state(self) -> Any: ...
    def restore(self, state: Any) -> None: ...


@dataclass(frozen=True)
class Job(Generic[S]):
    """What to train.

    `init() -> state`, any pytree of arrays, already on its devices. `step(state, batch, key) -> (state, metrics)` may
    donate the state; metrics are () numbers and must hold `finite`; where that is 0 the state must come back as it
    was. `evaluate(state)` returns numbers to log. `metadata` (JSON types: spec, config) is kept with each checkpoint;
    a run resumes only from a checkpoint of equal metadata. `mesh` decides where batches go (None: default device).
    """

    init: Callable[[], S]
    step: Callable[[S, Batch, jax.Array], tuple[S, Metrics]]
    metadata: Mapping[str, Any]
    evaluate: Callable[[S], Mapping[str, Any]] | None = None
    mesh: Mesh | None = None
    label: str = "train"


@dataclass(frozen=True)
class LoopConfig:
    """How long to train and what to write, in steps. `eval_every`, `save_every` 0: at the end only. `keep`: how many
    checkpoints stay on disk. Raises BadInput on values out of range."""

    steps: int
    seed: int = 0
    log_every: int = 50
    eval_every: int = 0
    save_every: int = 0
    keep: int = 2

    def __post_init__(self) -> None:
        for name, least in {"steps": 1, "seed": 0, "log_every": 1, "eval_every": 0, "save_every": 0, "keep": 1}.items():
            if getattr(self, name) < least:
                raise BadInput(f"LoopConfig.{name}: got {getattr(self, name)}, expected {least} or more")

    def due(self, every: int, step: int) -> bool:
        """Whether something done `every` steps is due after `step` updates; all are due after the last."""
        return step == self.steps or (every > 0 and step % every == 0)


def fit(
    job: Job[S], batches: Batches, config: LoopConfig, workdir: Path | None = None, *,
    on_record: Callable[[dict[str, Any]], None] | None = None, show: bool = True,
) -> S:  # fmt: skip
    """Train `job` for `config.steps` updates and return the final state.

    With a `workdir`: checkpoints in workdir/checkpoints, workdir/metrics.jsonl (a "train" line every `log_every` steps:
    means since the last one, images_per_s; an "eval" line per evaluation), resumption from the latest checkpoint; a
    finished run returns its state at once. Without: no files. `on_record` also gets each line as a dict; `show`
    turns the progress display on.

    Raises BadInput if the checkpoint belongs to another run (naming the field) or the data ends early. NonFinite after
    a non-finite step: the state before it is saved. Preempted after SIGTERM or Ctrl-C: the current step is finished
    and saved first.
    """
    store = _open(workdir, config.keep) if workdir else None
    try:
        run = _Run(job, batches, config, store)
        if run.done < config.steps:
            leads = jax.process_index() == 0
            run.record = MetricsFile(workdir if leads else None, run.done, on_record)
            with (
                StopRequest(enabled=store is not None) as stop,
                Progress(config.steps, job.label, initial=run.done, show=show and leads) as progress,
            ):
                run.train(stop, progress)
        return run.state
    finally:
        if store:
            store.close()


def _open(workdir: Path, keep: int) -> Checkpoints:
    from graftax.checkpoint.manager import Checkpoints  # orbax takes half a second, and runs without files need none

    return Checkpoints(workdir / "checkpoints", keep)


@dataclass
class _Ahead:
    """A batch on the device, with the data positions around it."""

    batch: Batch
    before: Any
    after: Any


@dataclass
class _Unchecked:
    """A step that has been sent off and whose metrics nobody has looked at yet."""

    step: int  # updates done, this one included
    metrics: Metrics
    ahead: _Ahead


class _Run(Generic[S]):
    """The moving parts of one `fit`: `state` after `done` updates, what is under way, what is averaged."""

    def __init__(self, job: Job[S], batches: Batches, config: LoopConfig, store: Checkpoints | None) -> None:
        self.job, self.batches, self.config, self.store = job, batches, config, store
        self.identity = {"metadata": dict(job.metadata), "seed": config.seed}
        self.state, self.done = job.init(), 0
        self.record: MetricsFile
        if store and (latest := store.latest()) is not None:
            self._resume(store, latest)

    def _resume(self, store: Checkpoints, latest: int) -> None:
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.state)
        del self.state  # before the restored one takes the same room
        self.state, _, position = store.restore(latest, like, lambda extra: check_identity(extra, self.identity))
        if latest > self.config.steps:
            raise BadInput(f"steps {self.config.steps}: the checkpoint is at step {latest}, expected that or more")
        self.batches.restore(position)
        self.done = latest

    def train(self, stop: StopRequest, progress: Progress) -> None:
        config, root = self.config, jax.random.key(self.config.seed)
        self.window = Window()
        finite: Any = np.float32(1)
        unchecked: _Unchecked | None = None
        ahead = self._fetch(self.batches.state())
        while self.done < config.steps:
            key, batch = _inputs(root, self.done, ahead.batch, finite)
            with nullcontext() if unchecked else self.window.pause():  # the first call compiles
                self.state, metrics = self.job.step(self.state, batch, key)
            self.done += 1
            # From here to the check the device is busy with this step: fetch the next batch, look at the last step.
            sent = _Unchecked(self.done, metrics, ahead)
            if self.done < config.steps:
                ahead = self._fetch(ahead.after)
            if unchecked:
                self._check(unchecked, progress)
            unchecked, finite = sent, metrics["finite"]
            if stop.requested or config.due(config.save_every, self.done) or config.due(config.eval_every, self.done):
                self._check(sent, progress)
                unchecked = None
                self._pause(sent, stop)

    def _fetch(self, before: Any) -> _Ahead:
        try:
            batch = next(self.batches)
        except StopIteration:
            raise BadInput(f"data ended after {self.done} of {self.config.steps} steps, expected more") from None
        return _Ahead(put_batch(batch, self.job.mesh), before, self.batches.state())

    def _check(self, sent: _Unchecked, progress: Progress) -> None:
        """Wait for a step, refuse it if it was not finite, add it to the averages, log if due."""
        numbers = {name: float(value) for name, value in jax.device_get(dict(sent.metrics)).items()}
        if not numbers.pop("finite"):
            # Steps sent since then were given spoilt batches, so the state is still the one before this step.
            self.done = sent.step - 1
            self._save(sent.ahead.before)
            raise NonFinite(f"step {sent.step}: loss or gradient not finite ({numbers}); kept step {self.done}")
        self.window.add(numbers, jax.tree.leaves(sent.ahead.batch)[0].shape[0])
        line = None
        if self.config.due(self.config.log_every, sent.step):
            line = self.window.means()
            self.record.write({"step": sent.step, "split": "train", **line})
            self.window = Window()
        progress.advance(metrics=line)

    def _pause(self, sent: _Unchecked, stop: StopRequest) -> None:
        """Evaluate and save what is due after a checked step; leave if asked to."""
        config = self.config
        with self.window.pause():
            if self.job.evaluate and config.due(config.eval_every, self.done):
                numbers = {name: float(value) for name, value in self.job.evaluate(self.state).items()}
                self.record.write({"step": self.done, "split": "eval", **numbers})
            if stop.requested or config.due(config.save_every, self.done):
                self._save(sent.ahead.after)
        if stop.requested and self.done < config.steps:
            raise Preempted(f"{stop.requested}: saved step {self.done} of {config.steps}; the same command continues")

    def _save(self, position: Any) -> None:
        if self.store and self.store.latest() != self.done:
            self.store.save(self.done, self.state, self.identity, position)


@jax.jit
def _inputs(root: jax.Array, step: int, batch: Batch, finite: jax.Array) -> tuple[jax.Array, Batch]:
    """Key and batch of a step. After a non-finite step the batch is all NaN: the loop learns of that step only when
    the next is under way, and a spoilt step, not being finite either, keeps the state."""

    def spoil(x: jax.Array) -> jax.Array:
        return jnp.where(finite > 0, x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.random.fold_in(root, step), jax.tree.map(spoil, batch)


def check_identity(found: Any, wanted: Any, path: str = "") -> None:
    """Raise BadInput naming the first field in which two JSON trees differ, tuples counting as lists."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in sorted({*found, *wanted}):
            check_identity(found.get(key), wanted.get(key), f"{path}.{key}" if path else key)
        return
    if isinstance(wanted, list | tuple) and isinstance(found, list | tuple) and len(wanted) == len(found):
        for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
            check_identity(a, b, f"{path}[{i}]")
        return
    if found != wanted:
        raise BadInput(f"{path}: the checkpoint has {found!r}, this run {wanted!r}; expected them equal to resume")
