"""Programs compiled ahead of time are the very ones that a run asks jax's cache for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FLAGS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


@pytest.mark.slow
def test_a_run_finds_what_was_compiled_from_shapes(tmp_path):
    """On four simulated devices, weights split over two: both stages and drawing compile nothing of their steps."""
    script = Path(__file__).with_name("kept_run.py")
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = os.environ | {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu", **cache}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ahead, behind = json.loads(done.stdout.splitlines()[-1])
    assert {name: len(found) for name, found in ahead.items()} == {"step": 1, "update": 1, "draw": 1}
    assert behind == ahead
