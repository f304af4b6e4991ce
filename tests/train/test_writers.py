import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from linear_job import FAST, Stream, linear_job
from PIL import Image

from graftax.errors import BadInput
from graftax.train import LoopConfig, fit
from graftax.train.record import JsonLines, Record, read_metrics
from graftax.train.writers import Several, open_writers

PICTURE = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would draw."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {name: [(p.step, p.value) for p in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_lines_are_grouped_by_split_and_hold_null_for_what_json_cannot(tmp_path: Path) -> None:
    writer = open_writers((), tmp_path, 0)
    writer.write_scalars(3, {"train/loss": 0.5, "train/error/blocks[1].mixer": float("nan"), "eval/loss": 1.0})
    writer.close()
    assert read_metrics(tmp_path) == [
        {"step": 3, "split": "train", "loss": 0.5, "error/blocks[1].mixer": None}, {"step": 3, "split": "eval", "loss": 1.0}
    ]  # fmt: skip


def test_opening_at_a_step_drops_what_came_later(tmp_path: Path) -> None:
    writer = JsonLines(tmp_path, 0)  # pyright: ignore[reportArgumentType]
    for step in (5, 10):
        writer.write_scalars(step, {"train/loss": step})
        writer.write_images(step, {"eval/samples": PICTURE})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "sp')
    open_writers((), tmp_path, 7).close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [5]
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["eval_samples_00000005.png"]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_rows(tmp_path: Path, channels: int) -> None:
    open_writers((), tmp_path, 0).write_images(2, {"eval/samples": PICTURE[..., :channels]})
    saved = np.asarray(Image.open(tmp_path / "images/eval_samples_00000002.png"))
    np.testing.assert_array_equal(saved.reshape(4, 12, channels), np.concatenate(list(PICTURE), 1)[..., :channels])


def test_a_record_reaches_writer_and_listener(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    record = Record(open_writers((), tmp_path, 0), heard.append)
    record.describe({"metadata": {"optimiser": {"b1": 0.9}, "frozen": ["pos_embed"]}, "seed": 3})
    record.write(4, "eval", {"loss": np.float32(0.25), "samples": PICTURE})
    record.close()
    assert heard == read_metrics(tmp_path) == [{"step": 4, "split": "eval", "loss": 0.25}]
    assert (tmp_path / "images/eval_samples_00000004.png").exists()
    assert json.loads((tmp_path / "hparams.json").read_text()) == {
        "metadata.optimiser.b1": 0.9, "metadata.frozen": '["pos_embed"]', "seed": 3
    }  # fmt: skip


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    writer = open_writers(["tensorboard"], tmp_path, 0)
    writer.write_hparams({"learning_rate": 0.1, "schedule": "cosine"})
    writer.write_scalars(1, {"train/loss": 0.5})
    writer.write_images(1, {"eval/samples": PICTURE})
    writer.write_scalars(2, {"train/loss": 0.25})
    writer.close()
    assert points(tmp_path) == {"train/loss": [(1, 0.5), (2, 0.25)]}
    written = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"eval/samples" in written
    assert b"learning_rate" in written
    assert b"schedule" in written


def test_a_run_that_was_cut_off_shows_each_point_once_in_tensorboard(tmp_path: Path) -> None:
    def crash(position: int) -> None:
        if position == 15:
            raise RuntimeError("crash")

    config = LoopConfig(steps=20, seed=3, log_every=4, save_every=6, writers=("tensorboard",))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(linear_job(), Stream(), config, whole, show=False)
    with pytest.raises(RuntimeError, match="crash"):
        fit(linear_job(), Stream(crash), config, cut, show=False)
    assert [step for step, _ in points(cut)["train/loss"]] == [4, 8, 12]
    with (cut / "metrics.jsonl").open("a") as file:  # as if step 16 had been written down when the process died
        file.write('{"step": 16, "split": "train", "loss": -1}\n')
    late = open_writers(["tensorboard"], cut, 12)
    late.write_scalars(16, {"train/loss": -1.0})
    late.close()
    fit(linear_job(), Stream(), config, cut, show=False)
    assert [step for step, _ in points(cut)["train/loss"]] == [4, 8, 12, 16, 20]
    assert points(cut)["train/loss"] == points(whole)["train/loss"]


class FakeRun:
    """What wandb.init returns, as far as it is used here."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.config: Any = types.SimpleNamespace(update=lambda values, allow_val_change: self.rows.append((0, values)))
        self.finished = False

    def log(self, values: dict[str, Any], step: int) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_wandb_runs_continue_under_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in for the package: that W&B itself takes it is not tested."""
    runs, opened = [], []

    def init(**options: Any) -> FakeRun:
        opened.append(options)
        runs.append(FakeRun())
        return runs[-1]

    fake: Any = types.ModuleType("wandb")
    fake.init, fake.Image = init, np.shape
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: fake)
    for step in (0, 5):
        writer = open_writers(["wandb"], tmp_path, step)
        writer.write_scalars(step + 1, {"train/loss": 0.5})
        writer.write_images(step + 1, {"eval/samples": PICTURE})
        writer.close()
    assert opened[0] == opened[1]
    assert opened[0]["resume"] == "allow"
    assert len(opened[0]["id"]) == 32
    assert runs[1].rows == [(6, {"train/loss": 0.5}), (6, {"eval/samples": [(4, 6, 3), (4, 6, 3)]})]
    assert runs[1].finished


def test_a_missing_package_is_named_with_its_extra_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"'tensorboard' needs the package tensorboardX.*graftax\[tensorboard\]"):
        LoopConfig(steps=1, writers=("tensorboard",))
    with pytest.raises(BadInput, match=r"'wandb' needs the package wandb.*graftax\[wandb\]"):
        LoopConfig(steps=1, writers=("wandb",))
    with pytest.raises(BadInput, match="'csv', expected any of tensorboard, wandb"):
        LoopConfig(steps=1, writers=("csv",))


def test_a_slow_writer_keeps_the_order_and_its_errors_are_raised() -> None:
    class Broken(JsonLines):
        def __init__(self) -> None:
            self.calls: list[int] = []

        def write_scalars(self, step: int, scalars: Any) -> None:
            self.calls.append(step)
            if step == 3:
                raise OSError("disk full")

    slow = Broken()
    writer = Several([], [slow])
    for step in (1, 2, 3):
        writer.write_scalars(step, {})
    with pytest.raises(OSError, match="disk full"):
        writer.flush()
    assert slow.calls == [1, 2, 3]


def test_the_optimiser_is_among_the_hyper_parameters(tmp_path: Path) -> None:
    fit(linear_job(), Stream(), LoopConfig(steps=2), tmp_path, show=False)
    found = json.loads((tmp_path / "hparams.json").read_text())
    assert found["metadata.optimiser.learning_rate"] == FAST.learning_rate
