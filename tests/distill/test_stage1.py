"""Stage 1 as one call: what comes back, what is written, what resumes, what is refused."""

import functools
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_graft import FAST, Stream, batch, student, teacher

from graftax.data.feed import as_batches
from graftax.distill import DistillConfig, distill, distill_job
from graftax.errors import BadInput, NonFinite
from graftax.models import Model
from graftax.surgery import replace
from graftax.testing import assert_same_leaves
from graftax.train.loop_config import LoopConfig
from graftax.train.record import read_metrics

HERE = Path(__file__).parent
PATHS = ["blocks/00/mixer", "blocks/01/mixer", "blocks/00/mlp"]


def original() -> Model:
    return teacher(depth=2)


@functools.cache
def grafted() -> Model:
    return student(original(), replace("blocks[*].mixer", "hyena_x"), replace("blocks[0].mlp", "mlp"))


def test_the_student_comes_back_trained_and_otherwise_the_same() -> None:
    loop, records = LoopConfig(steps=30, log_every=10, eval_every=15), []
    trained, history = distill(
        original(), grafted(), Stream(), FAST, loop, heldout=batch(99), on_record=records.append, show=False
    )
    assert_same_leaves(grafted().params, trained.params, PATHS)
    assert_same_leaves(original().params, trained.params, PATHS)
    assert (trained.spec, trained.meta.sites) == (grafted().spec, grafted().meta.sites)
    assert trained.meta.edits == (*grafted().meta.edits, "distill(steps=30)")
    assert history == records
    assert [(r["step"], r["split"]) for r in history] == [
        (10, "train"), (15, "eval"), (20, "train"), (30, "train"), (30, "eval"),
    ]  # fmt: skip
    first, last = history[1], history[-1]
    for site in grafted().meta.sites:
        assert last[f"error/{site}"] < first[f"error/{site}"] < 1.5
    # What is reported is what the returned student has.
    again = distill_job(original(), trained, FAST, heldout=batch(99))
    assert again.evaluate is not None
    assert again.evaluate(again.init()) == {k: v for k, v in last.items() if k not in ("step", "split")}


def quick(data: Any, steps: int, workdir: str | None = None) -> Model:
    config, loop = DistillConfig(steps=4, learning_rate=1e-3), LoopConfig(steps=steps, save_every=2)
    return distill(
        original(), grafted(), data, config, loop, workdir, sites="blocks[0].mlp", batch_size=4, show=False
    )[0]  # fmt: skip


def test_only_the_given_sites_train_and_arrays_will_do() -> None:
    arrays = batch(0, 12)
    trained = quick((arrays["image"], arrays["label"]), 2)
    assert_same_leaves(grafted().params, trained.params, ["blocks/00/mlp"])
    same = quick(as_batches(arrays, 4, 0), 2)
    jax.tree.map(np.testing.assert_array_equal, trained.params, same.params)


def test_a_grain_dataset_and_a_list_of_its_batches_teach_the_same_and_resume(tmp_path: Path) -> None:
    batches = [batch(i, 4) for i in range(4)]
    whole = quick(batches, 4)
    cut = str(tmp_path / "cut")
    quick(grain.MapDataset.source(batches), 2, cut)
    resumed = quick(grain.MapDataset.source(batches), 4, cut)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


@pytest.mark.slow
def test_a_cut_run_resumes_and_its_history_is_whole(tmp_path: Path) -> None:
    def crash(position: int) -> None:
        if position == 9:
            raise RuntimeError("crash")

    config = DistillConfig(steps=12, learning_rate=1e-3)
    loop = LoopConfig(steps=12, log_every=4, save_every=4)

    def call(folder: str, stream: Any) -> Any:
        return distill(original(), grafted(), stream, config, loop, tmp_path / folder, sites="blocks[0].mlp", show=False)

    whole, lines = call("whole", Stream())
    with pytest.raises(RuntimeError, match="crash"):
        call("cut", Stream(crash))
    cut, resumed = call("cut", Stream())
    jax.tree.map(np.testing.assert_array_equal, cut.params, whole.params)
    assert [line["step"] for line in resumed] == [line["step"] for line in lines] == [4, 8, 12]
    finished, again = call("cut", Stream())
    jax.tree.map(np.testing.assert_array_equal, finished.params, whole.params)
    assert again == resumed
    with pytest.raises(BadInput, match="learning_rate"):
        distill(original(), grafted(), Stream(), DistillConfig(steps=12, learning_rate=2e-3), loop, tmp_path / "cut")


@pytest.mark.slow
def test_kill_9_and_rerun_ends_bit_equal(tmp_path: Path) -> None:
    def run(*args: object) -> int:
        command = [sys.executable, HERE / "tiny_graft.py", *map(str, args)]
        return subprocess.run(command, capture_output=True, timeout=120).returncode

    assert run(tmp_path / "whole") == 0
    assert run(tmp_path / "cut", 8) == -signal.SIGKILL
    assert not (tmp_path / "cut/final.npz").exists()
    assert run(tmp_path / "cut") == 0
    whole, cut = (np.load(tmp_path / name / "final.npz") for name in ("whole", "cut"))
    assert len(whole.files) > 20
    for name in whole.files:
        np.testing.assert_array_equal(whole[name], cut[name])
    assert [line["step"] for line in read_metrics(tmp_path / "cut")] == [4, 8, 12]


@pytest.mark.slow
def test_a_bad_batch_stops_the_run_with_the_last_good_state(tmp_path: Path) -> None:
    def call(stream: Any, loop: LoopConfig, workdir: Path | None) -> Any:
        return distill(original(), grafted(), stream, FAST, loop, workdir, sites="blocks[0].mlp", show=False)

    with pytest.raises(NonFinite, match="step 4"):
        call(Stream(bad=3), LoopConfig(steps=8, log_every=4, save_every=50), tmp_path)
    good, _ = call(Stream(), LoopConfig(steps=3), None)
    kept, _ = call(Stream(), LoopConfig(steps=3), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, kept.params, good.params)


def halved(model: Model) -> Model:
    return model.replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, s: distill_job(t, t, FAST), "the student has no scions in its meta"),
        (lambda t, s: distill_job(teacher(hidden_size=64, depth=2), s, FAST), "sizes: .*=48, .*the teacher's .*=64, "),
        (lambda t, s: distill_job(teacher(), s, FAST), "student depth: 2, expected the teacher's 4"),
        (
            lambda t, s: distill(t, s, Stream(), FAST, LoopConfig(steps=201)),
            "LoopConfig.steps: got 201, expected at most DistillConfig.steps = 200",
        ),
        (lambda t, s: distill(t, halved(s), Stream(), FAST), "student: .*bfloat16"),
        (lambda t, s: distill(t, s, 5, FAST), "data: got int, expected arrays"),
        (lambda t, s: distill(t, s, [{"image": np.zeros((4, 4, 4, 4), np.float32), "label": np.zeros(4, int)}], FAST),
         r"data image: float32\(4, 4, 4, 4\), expected batches of floats \(b, 8, 8, 4\)"),
    ],
    ids=["no scions", "width", "depth", "steps", "bfloat16", "no data", "image size"],
)  # fmt: skip
def test_what_cannot_be_distilled_is_refused(call: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        call(original(), grafted())
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_runs_alike_on_eight_devices() -> None:
    done = subprocess.run([sys.executable, HERE / "mesh_run.py"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name in ("fsdp", "all"):
        np.testing.assert_allclose(found[name]["losses"], found["one"]["losses"], rtol=1e-4)
        assert found[name]["weights"] == pytest.approx(found["one"]["weights"], rel=1e-4)
        assert found[name]["error"] == pytest.approx(found["one"]["error"], rel=1e-4)
        assert found[name]["fitted_error"] == pytest.approx(found["one"]["fitted_error"], rel=1e-3)
    assert {name: run["part"] for name, run in found.items()} == {"one": 1, "fsdp": 1 / 8, "all": 1 / 4}


def test_an_unused_student_operator_is_no_site() -> None:
    job = distill_job(original(), student(original(), replace("blocks[1].mixer", "hyena_x")), FAST)
    assert job.metadata["sites"] == ["blocks[1].mixer"]
    assert json.loads(json.dumps(job.metadata)) is not None
