"""Kernels across a mesh: each device works on its own images and heads, and gradients of weights are summed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_four_devices_compute_as_one():
    command = [sys.executable, Path(__file__).parent / "mesh_run.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name, one in found.items():
        assert max(one["errors"]) < 1e-5, name
    assert (found["hyena"]["kernels"], found["sparse"]["kernels"]) == (2, 2)
    assert found["hyena split"]["kernels"] == 0  # the plain form
    assert found["hyena"]["collectives"] == ["all-reduce"]
    assert found["sparse"]["collectives"] == []
    assert found["hyena"]["shards"][:2] == found["sparse"]["shards"][:2] == [1 / 4] * 2
