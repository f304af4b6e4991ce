import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from linear_job import CONFIG, Stream, linear_job

from graftax.train import fit
from graftax.train.watchdog import Watchdog


def hang_files(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("hang-*-0.txt"))]


def test_silence_dumps_the_stacks_of_all_threads_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Watchdog(0.2, tmp_path, grace=0) as watchdog:
        watchdog.beat("step 7")
        time.sleep(0.8)  # a hang
        watchdog.beat("step 8")
    (text,) = hang_files(tmp_path)
    assert text.startswith("step 7: not done after 0 s")
    assert "Thread MainThread" in text
    assert "time.sleep(0.8)  # a hang" in text
    assert text in capfd.readouterr().err


def test_beats_and_patience_keep_it_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Watchdog(1, tmp_path, grace=30) as watchdog:
        with watchdog.patience("compiling"):
            time.sleep(1.3)
        for step in range(7):
            time.sleep(0.2)
            watchdog.beat(f"step {step}")
    assert hang_files(tmp_path) == []
    assert capfd.readouterr().err == ""


def test_after_patience_it_watches_again(tmp_path: Path) -> None:
    with Watchdog(0.2, tmp_path, grace=30) as watchdog:
        with watchdog.patience("saving"):
            pass
        time.sleep(0.6)
    assert "after saving: not done" in hang_files(tmp_path)[0]


def test_off_means_no_thread(tmp_path: Path) -> None:
    with Watchdog(0, tmp_path, grace=0):
        time.sleep(0.05)
    assert hang_files(tmp_path) == []


def test_a_step_that_sleeps_is_reported_by_fit(tmp_path: Path) -> None:
    def sleepy(state: Any, batch: Any, key: Any) -> Any:
        if stream.position == 10:
            time.sleep(1.6)  # the step that hangs
        return inner.step(state, batch, key)

    inner, stream = linear_job(), Stream()
    config = dataclasses.replace(CONFIG, hang_seconds=1)
    fit(dataclasses.replace(inner, step=sleepy), stream, config, tmp_path, show=False)
    assert any("time.sleep(1.6)  # the step that hangs" in text for text in hang_files(tmp_path))


def test_abort_ends_the_process_with_1(tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from graftax.train.watchdog import Watchdog
with Watchdog(0.2, Path({str(tmp_path)!r}), abort=True, grace=0):
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "graftax: error: hung, ended with exit code 1"
    assert len(hang_files(tmp_path)) == 1
