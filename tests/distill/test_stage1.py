import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_graft import FAST, Stream, batch, mixed, student, teacher

from graftax.distill import DistillConfig, distill, distill_job
from graftax.errors import BadInput, NonFinite
from graftax.surgery import replace
from graftax.testing import assert_same_leaves
from graftax.train.loop_config import LoopConfig
from graftax.train.record import read_metrics

HERE = Path(__file__).parent


def test_the_student_comes_back_trained_and_otherwise_the_same() -> None:
    original = teacher()
    grafted = mixed(original)
    loop, records = LoopConfig(steps=30, log_every=10, eval_every=15), []
    trained, history = distill(
        original, grafted, Stream(), FAST, loop, heldout=batch(99), on_record=records.append, show=False
    )
    paths = ["blocks/01/mixer", "blocks/02/mixer", "blocks/03/mixer", "blocks/00/mlp"]
    assert_same_leaves(grafted.params, trained.params, paths)
    assert_same_leaves(original.params, trained.params, [*paths])
    assert (trained.spec, trained.meta) == (grafted.spec, grafted.meta)
    assert history == records
    assert [(r["step"], r["split"]) for r in history] == [
        (10, "train"),
        (15, "eval"),
        (20, "train"),
        (30, "train"),
        (30, "eval"),
    ]
    first, last = history[1], history[-1]
    for site in grafted.meta.sites:
        assert last[f"error/{site}"] < first[f"error/{site}"] < 1.5
    # What is reported is what the returned student has.
    again = distill_job(original, trained, FAST, heldout=batch(99))
    assert again.evaluate is not None
    assert again.evaluate(again.init()) == {k: v for k, v in last.items() if k not in ("step", "split")}


def test_only_the_given_sites_train() -> None:
    original = teacher()
    grafted = mixed(original)
    trained, _ = distill(original, grafted, Stream(), FAST, LoopConfig(steps=2), sites="blocks[hyena_x].mixer", show=False)
    assert_same_leaves(grafted.params, trained.params, ["blocks/01/mixer", "blocks/03/mixer"])


def test_a_cut_run_resumes_and_its_history_is_whole(tmp_path: Path) -> None:
    def crash(position: int) -> None:
        if position == 9:
            raise RuntimeError("crash")

    original = teacher()
    grafted, config = mixed(original), DistillConfig(steps=12, learning_rate=1e-3)
    loop = LoopConfig(steps=12, log_every=4, save_every=4)

    def call(folder: str, stream: Any) -> Any:
        return distill(original, grafted, stream, config, loop, tmp_path / folder, show=False)

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
        distill(original, grafted, Stream(), DistillConfig(steps=12, learning_rate=2e-3), loop, tmp_path / "cut", show=False)


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


def test_a_bad_batch_stops_the_run_with_the_last_good_state(tmp_path: Path) -> None:
    original = teacher()
    loop = LoopConfig(steps=12, log_every=4, save_every=50)
    with pytest.raises(NonFinite, match="step 6"):
        distill(original, mixed(original), Stream(bad=5), FAST, loop, tmp_path, show=False)
    good, _ = distill(original, mixed(original), Stream(), FAST, LoopConfig(steps=5), show=False)
    kept, _ = distill(original, mixed(original), Stream(), FAST, LoopConfig(steps=5), tmp_path, show=False)
    jax.tree.map(np.testing.assert_array_equal, kept.params, good.params)


def test_what_cannot_be_distilled_is_refused() -> None:
    original = teacher()
    grafted = mixed(original)
    with pytest.raises(BadInput, match="meta names none"):
        distill_job(original, original, FAST)
    with pytest.raises(BadInput, match=r"student hidden_size: 48, expected the teacher's 64"):
        distill_job(teacher(hidden_size=64), grafted, FAST)
    with pytest.raises(BadInput, match=r"student depth: 4, expected the teacher's 5"):
        distill_job(teacher(depth=5), grafted, FAST)
    with pytest.raises(BadInput, match=r"LoopConfig.steps: got 201, expected at most DistillConfig.steps = 200"):
        distill(original, grafted, Stream(), FAST, LoopConfig(steps=201))


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
    original = teacher()
    grafted = student(original, replace("blocks[1].mixer", "hyena_x"))
    job = distill_job(original, grafted, FAST)
    assert job.metadata["sites"] == ["blocks[1].mixer"]
    assert json.loads(json.dumps(job.metadata)) is not None
