import contextlib
import functools
import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from linear_job import CONFIG, FAST, Stream, linear_job, loss_fn, params, send_at

from graftax.errors import BadInput, NonFinite, Preempted
from graftax.train import Job, LoopConfig, OptimiserConfig, TrainState, fit, train_job
from graftax.train.loop import check_identity
from graftax.train.record import Window, read_metrics


def same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(autouse=True)
def default_interrupt() -> Iterator[None]:
    """A test run that a shell started in the background inherits an ignored SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run(folder: Path | None = None, stream: Stream | None = None, config: LoopConfig = CONFIG, **options: Any) -> Any:
    return fit(linear_job(**options), stream or Stream(), config, folder, show=False)


@functools.cache
def undisturbed() -> TrainState:
    """The state after a run that nothing happens to."""
    return run()


def test_training_learns_and_records_means_without_files() -> None:
    records: list[dict[str, Any]] = []
    config = LoopConfig(steps=20, log_every=8, eval_every=10)
    job = linear_job(evaluate=lambda p: {"w0": p["w"][0]})
    state = fit(job, Stream(), config, on_record=records.append, show=False)
    assert [(r["step"], r["split"]) for r in records] == [
        (8, "train"), (10, "eval"), (16, "train"), (20, "train"), (20, "eval")
    ]  # fmt: skip
    assert records[3]["loss"] < records[0]["loss"]
    assert records[-1]["w0"] == float(state.ema["w"][0])
    assert records[0]["lr"] == pytest.approx(0.05 * np.mean([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1]))
    assert records[0]["images_per_s"] > 0
    assert int(state.step) == 20


def test_a_run_cut_short_and_resumed_ends_bit_equal_with_each_line_once(tmp_path: Path) -> None:
    def crash(position: int) -> None:
        if position == 10:
            raise RuntimeError("crash")

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "cut", Stream(crash))
    stale = {"step": 8, "split": "train", "loss": -1.0}
    with (tmp_path / "cut/metrics.jsonl").open("a") as file:
        file.write(json.dumps(stale) + "\n" + '{"step": 9, "spl')
    same(run(tmp_path / "cut"), whole)
    lines = read_metrics(tmp_path / "cut")
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20]
    assert stale not in lines
    uncut = read_metrics(tmp_path / "whole")
    # The window that the cut fell into starts at the checkpoint (step 6), the others agree exactly.
    for i in (0, 2, 3, 4):
        assert lines[i]["loss"] == uncut[i]["loss"]


def test_a_finished_run_returns_at_once(tmp_path: Path) -> None:
    def never(position: int) -> None:
        raise AssertionError("a finished run must not read data")

    same(run(tmp_path), run(tmp_path, Stream(never)))


def test_more_steps_continue_and_fewer_are_refused(tmp_path: Path) -> None:
    short = LoopConfig(steps=8, seed=3, log_every=1, keep=3)
    run(tmp_path, config=short)
    same(run(tmp_path), undisturbed())
    with pytest.raises(BadInput, match=r"steps 8.*step 20"):
        run(tmp_path, config=short)


def test_a_checkpoint_of_another_run_is_refused_by_field(tmp_path: Path) -> None:
    run(tmp_path, metadata={"spec": {"depth": 2}})
    slower = OptimiserConfig(learning_rate=0.01, warmup_steps=5)
    with pytest.raises(BadInput, match=r"metadata\.optimiser\.learning_rate.*0\.05.*0\.01"):
        run(tmp_path, metadata={"spec": {"depth": 2}}, optimiser=slower)
    with pytest.raises(BadInput, match=r"metadata\.spec\.depth.*2.*3"):
        run(tmp_path, metadata={"spec": {"depth": 3}})
    with pytest.raises(BadInput, match=r"seed.*3.*4"):
        run(tmp_path, metadata={"spec": {"depth": 2}}, config=LoopConfig(steps=20, seed=4))


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: for every writer as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@functools.cache
def big_job() -> Job[TrainState]:
    """The linear job with 80 kB in its state that do not compress."""
    ballast = {"ballast": jax.random.normal(jax.random.key(0), (20_000,))}
    return train_job(lambda: params() | ballast, loss_fn, FAST, frozen=("ballast",))


# What tensorstore had under way when the first of its writes failed complains of the loop that is gone by then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_storage_that_is_full_is_named_and_the_checkpoint_before_stays(tmp_path: Path) -> None:
    def fit_big(steps: int) -> TrainState:
        return fit(big_job(), Stream(), LoopConfig(steps=steps, save_every=3, log_every=20), tmp_path, show=False)

    fit_big(3)
    with files_up_to(40_000), pytest.raises(BadInput, match=r"step 6 cannot be saved \(file too large\)") as caught:
        fit_big(6)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]  # nothing of what failed
    with files_up_to(0), pytest.raises(BadInput, match=r"cannot be written \(File too large\)"):
        fit_big(6)
    (state,) = {int(fit_big(6).step)}  # goes on from step 3
    assert state == 6
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "6"]


def test_metrics_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    run(tmp_path, config=LoopConfig(steps=8, seed=3, log_every=8))
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with files_up_to(size + 10), pytest.raises(BadInput, match=r"cannot be written \(file too large\)"):
        run(tmp_path)


def test_the_best_checkpoint_and_every_tenth_stay(tmp_path: Path) -> None:
    config = LoopConfig(20, seed=3, eval_every=2, save_every=2, keep=1, keep_every=10, keep_best="far")
    run(tmp_path, config=config, evaluate=lambda p: {"far": abs(p["w"][0] - 0.6)})
    lines = [line for line in read_metrics(tmp_path) if line["split"] == "eval"]
    best = min(lines, key=lambda line: line["far"])["step"]
    assert best not in (10, 20)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == sorted({best, 10, 20})


def test_what_keep_best_compares_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="this job has no evaluation"):
        run(tmp_path, config=LoopConfig(20, keep_best="loss"))
    with pytest.raises(BadInput, match=r"got 'los', expected one of \['loss'\]"):
        run(tmp_path, config=LoopConfig(4, keep_best="los"), evaluate=lambda p: {"loss": 1.0})
    with pytest.raises(BadInput, match=r"save_every: got 4, expected a multiple of eval_every \(3\)"):
        LoopConfig(20, eval_every=3, save_every=4, keep_best="loss")
    with pytest.raises(BadInput, match="best_is: got 'most'"):
        LoopConfig(20, best_is="most")


def test_identities_compare_as_json() -> None:
    check_identity({"a": [1, {"b": None}]}, {"a": (1, {"b": None})})
    with pytest.raises(BadInput, match=r"a\[1\]\.b"):
        check_identity({"a": [1, {"b": 2}]}, {"a": (1, {"b": 3})})
    with pytest.raises(BadInput, match="a: "):
        check_identity({"a": [1]}, {"a": [1, 2]})


@pytest.mark.parametrize("bad", [0, 9, 11, 19])  # the first step, in between, right before a save, the last
def test_a_nan_stops_with_the_state_before_it_saved(tmp_path: Path, bad: int) -> None:
    with pytest.raises(NonFinite, match=rf"step {bad + 1}:.*step {bad}$") as caught:
        run(tmp_path, Stream(bad=bad))
    assert caught.value.exit_code == 3
    assert all(line["step"] <= bad for line in read_metrics(tmp_path)) if bad >= 4 else True
    # Resumed on healthy data it ends where a healthy run ends: state, data position and key are those before the NaN.
    same(run(tmp_path), undisturbed())


def test_the_same_nan_stops_a_resumed_run_again(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(NonFinite, match="step 10"):
            run(tmp_path, Stream(bad=9))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_raises_preempted(tmp_path: Path, number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Preempted, match=f"{signal.Signals(number).name}: saved step") as caught:
        run(tmp_path, Stream(send_at(9, number)))
    assert caught.value.exit_code == 42
    assert signal.getsignal(number) is before
    assert "saved step 9 " in str(caught.value)  # batch 9 is fetched while step 9 runs
    same(run(tmp_path), undisturbed())


def test_ignored_signals_stay_ignored(tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    same(run(tmp_path, Stream(send_at(9, signal.SIGINT))), undisturbed())


def test_without_files_signals_are_left_alone() -> None:
    with pytest.raises(KeyboardInterrupt):
        run(None, Stream(lambda at: os.kill(os.getpid(), signal.SIGINT) if at == 3 else None))


def test_data_that_ends_is_named() -> None:
    def end(position: int) -> None:
        if position == 4:
            raise StopIteration

    with pytest.raises(BadInput, match="after 4 of 20 steps"):
        run(None, Stream(end))


@pytest.mark.parametrize(
    "field", ["steps", "log_every", "eval_every", "save_every", "keep", "seed", "keep_every", "hang_seconds"]
)
def test_loop_configs_out_of_range_are_refused(field: str) -> None:
    with pytest.raises(BadInput, match=field):
        LoopConfig(**{"steps": 5, field: -1})


def test_pauses_do_not_count_in_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 12.0, 14.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    window = Window()
    window.add({"loss": 1.0}, 6)
    with window.pause():
        pass
    window.add({"loss": 3.0}, 6)
    assert window.means() == {"loss": 2.0, "images_per_s": 12 / 4}


def test_the_optimiser_is_part_of_the_identity() -> None:
    assert linear_job(metadata={"x": 1}).metadata["optimiser"]["learning_rate"] == FAST.learning_rate
