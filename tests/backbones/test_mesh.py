"""Models of texts run where their weights are split: under `fsdp`, under `tensor`, and under both."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_folders_loaded_onto_a_mesh_draw_as_on_one_device():
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "mesh_run.py"], capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == {"flux", "sd3", "auraflow"}
    for meshes in found.values():
        assert all(one["error"] < 1e-5 for one in meshes.values())
        assert meshes["fsdp"]["share"] < 0.2  # of eight devices; what is small is whole on each
        assert meshes["all"]["share"] < 0.35  # weights are split in four, data parallelism copies them
