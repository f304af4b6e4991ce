"""kill -9 in a real process, then the same command again: the result must be bit-equal."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from every_recipe import cases

from graftax.train.record import read_metrics

FOLDER = Path(__file__).parent


def run(*args: object, script: str = "linear_job.py") -> int:
    return subprocess.run([sys.executable, FOLDER / script, *map(str, args)], capture_output=True, timeout=280).returncode


def assert_bit_equal(whole: Path, cut: Path) -> None:
    one, other = (np.load(folder / "final.npz") for folder in (whole, cut))
    assert len(one.files) > 5
    for name in one.files:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.timeout(900)  # three processes; seconds on a free machine
def test_killed_and_rerun_equals_uninterrupted(tmp_path: Path) -> None:
    assert run(tmp_path / "whole") == 0
    assert run(tmp_path / "cut", 9) == -signal.SIGKILL
    assert not (tmp_path / "cut/final.npz").exists()
    assert run(tmp_path / "cut") == 0
    assert_bit_equal(tmp_path / "whole", tmp_path / "cut")
    assert [line["step"] for line in read_metrics(tmp_path / "cut")] == [4, 8, 12, 16, 20]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(cases()))
def test_every_recipe_killed_and_rerun_equals_uninterrupted(tmp_path: Path, name: str) -> None:
    assert run(name, tmp_path / "whole", script="every_recipe.py") == 0
    assert run(name, tmp_path / "cut", 5, script="every_recipe.py") == -signal.SIGKILL
    assert not (tmp_path / "cut/final.npz").exists()
    assert any((tmp_path / "cut/checkpoints").iterdir())
    assert run(name, tmp_path / "cut", script="every_recipe.py") == 0
    assert_bit_equal(tmp_path / "whole", tmp_path / "cut")
