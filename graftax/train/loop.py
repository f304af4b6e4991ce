"""`fit`: the one training loop. It knows nothing of models: a `Job` brings the state and the step.

Re-running the same command continues where the last checkpoint left off, bit for bit: the key of a step depends on the
seed and the step's number alone, and the position in the data is saved with the state it belongs to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from graftax.checkpoint.files import storage_trouble
from graftax.checkpoint.lock import holding
from graftax.checkpoint.paths import WorkPath, work_path
from graftax.checkpoint.retention import Retention
from graftax.errors import BadInput, NonFinite, Preempted, naming
from graftax.progress import Progress
from graftax.train.loop_config import LoopConfig
from graftax.train.record import FILE, Record, Window, read_metrics
from graftax.train.sharding import put_batch
from graftax.train.signals import StopRequest
from graftax.train.throughput import Throughput
from graftax.train.trace import StepTrace
from graftax.train.watchdog import Watchdog
from graftax.train.writers import open_writers

if TYPE_CHECKING:
    from graftax.checkpoint.manager import Checkpoints

S = TypeVar("S")
Batch = Mapping[str, Any]  # name -> (b, ...) array
Metrics = Mapping[str, Any]  # name -> () float32
History = list[dict[str, Any]]  # records of a run, as they stand in metrics.jsonl


SHOWN = {"loss": "loss", "lr": "lr", "img/s/chip": "images_per_s_per_chip", "MFU": "mfu"}
"""What the progress display shows of a record: its own short names, and those of the record."""


class Batches(Protocol):
    """Endless source of host batches whose position is a JSON value."""

    def __next__(self) -> Batch: ...
    def state(self) -> Any: ...
    def restore(self, state: Any) -> None: ...


@dataclass(frozen=True)
class Job(Generic[S]):
    """What to train.

    Attributes:
        init: () -> state, any pytree of arrays, already on its devices.
        step: (state, batch, key) -> (state, metrics). It may donate the state; metrics are () numbers and must hold
            `finite`; where that is 0 the state must come back as it was.
        metadata: JSON types (spec, config), kept with each checkpoint; a run resumes only from one of equal metadata.
        evaluate: from a state to numbers to log, and images (n, h, w, c) uint8 if there are any to see.
        mesh: where batches go (None: default device).
        label: of the progress display.
        flops_per_image: see `Throughput`.
    """

    init: Callable[[], S]
    step: Callable[[S, Batch, jax.Array], tuple[S, Metrics]]
    metadata: Mapping[str, Any]
    evaluate: Callable[[S], Mapping[str, Any]] | None = None
    mesh: Mesh | None = None
    label: str = "train"
    flops_per_image: float = 0.0


def fit(
    job: Job[S], batches: Batches, config: LoopConfig, workdir: str | os.PathLike[str] | None = None, *,
    on_record: Callable[[dict[str, Any]], None] | None = None, show: bool = True,
) -> S:  # fmt: skip
    """Train `job` for `config.steps` updates and return the final state.

    With a `workdir`, local, mounted or gs://BUCKET/FOLDER: checkpoints in workdir/checkpoints, workdir/metrics.jsonl (a
    "train" line every `log_every` steps: means since the last one, images_per_s and the rates of `Throughput`; an "eval"
    line per evaluation), the other `config.writers`, resumption from the latest checkpoint; a finished run returns its
    state at once. Without: no files. `on_record` also gets each line as a dict; `show` turns the progress display on.

    Several processes that `jax.distributed` has joined train as one: all call `fit` alike, with one `workdir` that they
    share, each with its share of the batches.

    Raises BadInput if the checkpoint belongs to another run (naming the field), the data ends early, or `workdir` cannot
    be written or is in use by another process (`graftax.checkpoint.lock`). NonFinite after a non-finite step: the state
    before it is saved. Preempted after SIGTERM or Ctrl-C in any of the processes: the current step is finished and saved
    first, the same one by all.
    """
    if config.keep_best and not job.evaluate:
        raise BadInput(f"LoopConfig.keep_best: got {config.keep_best!r}, expected None: this job has no evaluation")
    folder = work_path(workdir) if workdir else None
    watched = Watchdog(config.hang_seconds, folder, abort=config.hang_abort)
    with holding(folder, folder=True), watched as watchdog:
        store = _open(folder, config) if folder else None
        try:
            return _fit(_Run(job, batches, config, store, watchdog), folder, on_record, show)
        except BadInput:
            raise
        except Exception as error:  # of a writer, as a rule
            if not (reason := storage_trouble(error)):
                raise
            raise BadInput(f"{getattr(error, 'filename', None) or folder}: cannot be written ({reason})") from error
        finally:
            with watchdog.patience("last save"):
                if store:
                    store.close()


def fit_recorded(
    job: Job[S], batches: Batches, config: LoopConfig, workdir: str | os.PathLike[str] | None = None, *,
    on_record: Callable[[dict[str, Any]], None] | None = None, show: bool = True,
) -> tuple[S, History]:  # fmt: skip
    """`fit`, and all records of the run: with a `workdir` also those that it left before it was resumed."""
    history: History = []

    def record(line: dict[str, Any]) -> None:
        history.append(line)
        if on_record:
            on_record(line)

    state = fit(job, batches, config, workdir, on_record=record, show=show)
    if workdir and (work_path(workdir) / FILE).exists():
        history = read_metrics(workdir)
    return state, history


def _fit(run: _Run[S], workdir: WorkPath | None, listener: Callable[[dict[str, Any]], None] | None, show: bool) -> S:
    config = run.config
    if run.done == config.steps:
        return run.state
    leads = jax.process_index() == 0
    writer = open_writers(config.writers, workdir, run.done) if workdir and leads else None
    with (
        closing(Record(writer, listener)) as run.record,
        StepTrace(workdir / "profile" if workdir else None, config.profile) as run.trace,
        StopRequest(enabled=run.store is not None) as stop,
        Progress(config.steps, run.job.label, initial=run.done, show=show and leads) as progress,
    ):
        if not run.done:
            run.record.describe(run.identity)
        run.train(stop, progress)
    return run.state


def _open(workdir: WorkPath, config: LoopConfig) -> Checkpoints:
    from graftax.checkpoint.manager import Checkpoints  # orbax takes half a second, and runs without files need none

    best = config.best_is if config.keep_best else None
    return Checkpoints(workdir / "checkpoints", Retention(config.keep, config.keep_every, best))


@dataclass
class _Ahead:
    """A batch on the device, with the data positions around it.

    Attributes:
        batch: arrays (b, ...) by name.
        before: position of this batch.
        after: position of the next one.
    """

    batch: Batch
    before: Any
    after: Any


@dataclass
class _Unchecked:
    """A step that has been sent off and whose metrics nobody has looked at yet.

    Attributes:
        step: updates done, this one included.
        metrics: of it, on the device.
        ahead: its batch.
    """

    step: int
    metrics: Metrics
    ahead: _Ahead


class _Run(Generic[S]):
    """The moving parts of one `fit`: `state` after `done` updates, what is under way, what is averaged."""

    def __init__(
        self, job: Job[S], batches: Batches, config: LoopConfig, store: Checkpoints | None, watchdog: Watchdog
    ) -> None:
        self.job, self.batches, self.config, self.store, self.watchdog = job, batches, config, store, watchdog
        self.identity = {"metadata": dict(job.metadata), "seed": config.seed}
        self.state, self.done = job.init(), 0
        self.record: Record
        self.trace: StepTrace
        devices = job.mesh.devices.flat if job.mesh else jax.devices()[:1]
        self.throughput = Throughput.on(list(devices), job.flops_per_image)
        if store and (latest := store.latest()) is not None:
            self._resume(store, latest)

    def _resume(self, store: Checkpoints, latest: int) -> None:
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.state)
        del self.state  # before the restored one takes the same room
        with naming(store.folder):
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
            with nullcontext() if unchecked else self._unhurried("compiling"), self.trace.around(self.done + 1):
                self.state, metrics = self.job.step(self.state, batch, key)
            self.done += 1
            # From here to the check the device is busy with this step: fetch the next batch, look at the last step.
            sent = _Unchecked(self.done, metrics, ahead)
            if self.done < config.steps:
                ahead = self._fetch(ahead.after)
            if unchecked:
                self._check(unchecked, progress)
            unchecked, finite = sent, metrics["finite"]
            stopped_by = stop.poll()
            if stopped_by or config.due(config.save_every, self.done) or config.due(config.eval_every, self.done):
                self._check(sent, progress)
                unchecked = None
                self._pause(sent, stopped_by)

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
        self.watchdog.beat(f"step {sent.step + 1}")
        self.window.add(numbers, jax.tree.leaves(sent.ahead.batch)[0].shape[0])
        self.trace.finished(sent.step)
        line = {}
        if self.config.due(self.config.log_every, sent.step):
            line = self.window.means()
            line |= self.throughput.rates(line["images_per_s"])
            self.record.write(sent.step, "train", line)
            self.window = Window()
        progress.advance(metrics={name: line[key] for name, key in SHOWN.items() if key in line})

    def _pause(self, sent: _Unchecked, stopped_by: str) -> None:
        """Evaluate and save what is due after a checked step; leave if asked to."""
        config, score = self.config, None
        with self._unhurried("evaluating and saving"):
            if self.job.evaluate and config.due(config.eval_every, self.done):
                found = self.job.evaluate(self.state)
                self.record.write(self.done, "eval", found)
                score = self._score(found)
            if stopped_by or config.due(config.save_every, self.done):
                self._save(sent.ahead.after, score)
        if stopped_by and self.done < config.steps:
            raise Preempted(f"{stopped_by}: saved step {self.done} of {config.steps}; the same command continues")

    @contextmanager
    def _unhurried(self, doing: str) -> Iterator[None]:
        """What takes long now and then: it does not count in the rates, and the watchdog waits."""
        with self.window.pause(), self.watchdog.patience(doing):
            yield

    def _score(self, found: Mapping[str, Any]) -> float | None:
        """The number that `keep_best` compares, of an evaluation."""
        name = self.config.keep_best
        if name is not None and name not in found:
            raise BadInput(f"LoopConfig.keep_best: got {name!r}, expected one of {sorted(found)}, which this job evaluates")
        return None if name is None else float(found[name])

    def _save(self, position: Any, score: float | None = None) -> None:
        if self.store and self.store.latest() != self.done:
            self.record.flush()  # whoever resumes at this step writes nothing before it again
            self.store.save(self.done, self.state, self.identity, position, score)


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
        raise BadInput(
            f"{path}: the checkpoint has {found!r}, this run {wanted!r}; give the same value to resume, or another "
            "work folder to start over"
        )
