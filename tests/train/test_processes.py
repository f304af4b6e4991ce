"""Two processes joined by jax.distributed train as one does: stage 1 with its least squares, and stage 2."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent / "process_run.py"


def start(count: int, index: int, port: int) -> subprocess.Popen:
    command = [sys.executable, SCRIPT, str(count), str(index), str(port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen) -> dict:
    try:
        out, err = process.communicate(timeout=800)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_as_one_does() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [start(2, index, port) for index in range(2)]
    first, second = (result(process) for process in pair)
    alone = result(start(1, 0, port))
    assert first["stage1"] == second["stage1"]  # the same numbers on both, to the bit
    assert first["stage2"] == second["stage2"]
    for stage in ("stage1", "stage2"):
        np.testing.assert_allclose(first[stage], alone[stage], atol=1e-5)
    assert (first["devices"], first["whole"], first["part"]) == (8, False, 0.25)
    assert (alone["devices"], alone["whole"], alone["part"]) == (8, True, 0.25)
