"""Two processes that train as one, shot at random points: the result must be bit-equal to an undisturbed run."""

import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graftax.train.record import read_metrics

SCRIPT = Path(__file__).parent / "survival_run.py"
SHOTS = 6  # per stage, half of them SIGTERM


def launch(job: str, folder: Path | str, *shot: object) -> list[int]:
    """The exit codes of both processes. A survivor of SIGKILL is to find out by itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, SCRIPT, job, folder, port]
    both = [
        subprocess.Popen([str(word) for word in (*command, i, *shot)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for i in range(2)
    ]
    for process in both:
        process.wait(timeout=900)
    codes = [process.returncode for process in both]
    if not shot and codes != [0, 0]:
        raise AssertionError("\n".join(process.stdout.read().decode()[-2000:] for process in both if process.stdout))
    return codes


def flip_a_bit(checkpoint: Path) -> None:
    largest = max((path for path in (checkpoint / "state").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def assert_bit_equal(a: Path, b: Path, least: int) -> None:
    one, other = np.load(a / "final.npz"), np.load(b / "final.npz")
    assert len(one.files) >= least
    for name in one.files:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.slow
@pytest.mark.timeout(1800)  # four processes; seconds on a free machine
def test_sigterm_at_one_process_stops_both_and_both_fall_back_from_damage(tmp_path: Path) -> None:
    assert launch("linear", f"{tmp_path}/whole,{tmp_path}/cut", 1, 7, "SIGTERM", 0) == [42, 42]
    saved = [int(path.name) for path in (tmp_path / "cut/checkpoints").glob("[0-9]*")]
    assert 7 <= max(saved) <= 9  # it is heard of a step later, and the next step is under way then
    flip_a_bit(tmp_path / "cut/checkpoints" / str(max(saved)))
    assert launch("linear", tmp_path / "cut") == [0, 0]  # from the checkpoint before: one process decides, both follow
    assert (tmp_path / "cut/checkpoints/damaged" / str(max(saved))).is_dir()
    assert_bit_equal(tmp_path / "whole", tmp_path / "cut", 8)
    assert [line["step"] for line in read_metrics(tmp_path / "cut")] == [4, 8, 12]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hosts_that_do_not_share_their_folder_are_told_so(tmp_path: Path) -> None:
    assert launch("linear", f"{tmp_path}/of-PROCESS", 0, 99, "SIGTERM", 0) == [2, 2]
    assert not list(tmp_path.glob("of-*/checkpoints/[0-9]*"))


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("job", ["stage1", "stage2"])
def test_both_stages_survive_being_shot_again_and_again(tmp_path: Path, job: str) -> None:
    launch(job, tmp_path / "whole")
    rng = random.Random(job)
    numbers = [signal.SIGTERM, signal.SIGKILL] * (SHOTS // 2)
    for i, number in enumerate(rng.sample(numbers, SHOTS)):
        batch, delay = 4 + 6 * i, rng.randrange(60)  # ever later, so that each run has something to continue
        codes = launch(job, tmp_path / "cut", rng.randrange(2), batch, number.name, delay)
        expected = codes == [42, 42] if number == signal.SIGTERM else -signal.SIGKILL in codes and 0 not in codes
        assert expected, f"shot {i} by {number.name}: exit codes {codes}"
    launch(job, tmp_path / "cut")
    assert_bit_equal(tmp_path / "whole", tmp_path / "cut", 20)
    assert [line["step"] for line in read_metrics(tmp_path / "cut")] == list(range(4, 49, 4))
