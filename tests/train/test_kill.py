"""kill -9 in a real process, then the same command again: the result must be bit-equal."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graftax.train.record import read_metrics

SCRIPT = Path(__file__).parent / "linear_job.py"


def run(*args: object) -> int:
    return subprocess.run([sys.executable, SCRIPT, *map(str, args)], capture_output=True, timeout=280).returncode


@pytest.mark.timeout(900)  # three processes; seconds on a free machine
def test_killed_and_rerun_equals_uninterrupted(tmp_path: Path) -> None:
    assert run(tmp_path / "whole") == 0
    assert run(tmp_path / "cut", 9) == -signal.SIGKILL
    assert not (tmp_path / "cut/final.npz").exists()
    assert run(tmp_path / "cut") == 0
    whole, cut = (np.load(tmp_path / name / "final.npz") for name in ("whole", "cut"))
    assert len(whole.files) > 5
    for name in whole.files:
        np.testing.assert_array_equal(whole[name], cut[name])
    assert [line["step"] for line in read_metrics(tmp_path / "cut")] == [4, 8, 12, 16, 20]
