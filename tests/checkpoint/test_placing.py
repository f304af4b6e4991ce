"""Weights onto devices: how much host memory that takes, and what is refused."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from graftax.checkpoint import place_params
from graftax.errors import NonFinite
from graftax.models.joined import Joined
from graftax.train import MeshConfig
from graftax.train.sharding import tree_shardings

WIDTH, DOUBLE, SINGLE, SHARDS = 1024, 3, 8, 4


@pytest.mark.slow
@pytest.mark.full_compiler
def test_a_model_is_never_whole_in_host_memory_beside_its_devices():
    """Simulated devices are host memory: what they hold is subtracted. What is left is copies on their way, and programs."""
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: half a gigabyte that nobody looks at again
        sizes = map(str, (WIDTH, DOUBLE, SINGLE, SHARDS))
        command = [sys.executable, Path(__file__).parent / "big_run.py", f"{folder}/flux", *sizes]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["files"]) == SHARDS
    assert found["tensors"] <= found["held"] < 1.02 * found["tensors"]  # small leaves are whole on every device
    assert found["peak"] - found["before"] - found["held"] <= 1.2 * max(found["files"])
    assert found["types"] == ["bfloat16"]
    assert found["shard"] == [WIDTH // 8, 3 * WIDTH]
    first, second = found["qkv"][:3], found["qkv"][3:]  # rows 0 and 1 of the three tensors
    assert first == [0, 0, 0]
    assert 0 < second[0] < second[1] < second[2]


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
@pytest.mark.parametrize("on_mesh", [False, True])
def test_what_is_not_finite_is_named(spoilt, on_mesh):
    good, bad = np.ones((4, 4), np.float32), np.full((4, 4), spoilt, np.float32)
    params = {"a": {"kernel": good}, "b": {"kernel": Joined([good, bad], 1)}}
    shardings = tree_shardings(params, MeshConfig(data=1).build(jax.devices()[:1])) if on_mesh else None
    with pytest.raises(NonFinite, match="weights b/kernel: NaN or infinite as float32"):
        place_params(params, shardings=shardings)
    sound = {**params, "b": {"kernel": Joined([good, 2 * good], 1)}}
    placed = place_params(sound, shardings=shardings)
    np.testing.assert_array_equal(placed["b"]["kernel"], np.concatenate([good, 2 * good], 1))
