import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from graftax.errors import BadInput
from graftax.train import MeshConfig
from graftax.train.sharding import leaf_spec, put_batch

MESH = SimpleNamespace(shape={"data": 1, "fsdp": 4, "tensor": 2})


@pytest.mark.parametrize(
    ("path", "shape", "wanted"),
    [
        ("blocks/00/mixer/qkv/kernel", (64, 192), P("fsdp", "tensor")),
        ("blocks/00/mixer/proj/kernel", (64, 64), P("tensor", "fsdp")),
        ("opt_state/1/0/mu/blocks/00/mlp/fc2/kernel", (256, 64), P("tensor", "fsdp")),
        ("blocks/00/adaln/kernel", (64, 384), P(None, "fsdp")),
        ("y_embedder/embedding", (1001, 64), P(None, "fsdp")),
        ("blocks/00/mlp/fc1/kernel", (65, 127), P()),  # nothing divides
        ("blocks/00/mixer/qkv/bias", (192,), P()),  # small
        ("step", (), P()),
        # Collected blocks: as above behind an axis over blocks, which stays whole.
        ("trainable/blocks/mixer/0_mha/qkv/kernel", (12, 64, 192), P(None, "fsdp", "tensor")),
        ("opt_state/1/0/mu/blocks/mlp/0_mlp/fc2/kernel", (12, 256, 64), P(None, "tensor", "fsdp")),
        ("blocks/adaln/kernel", (8, 64, 384), P(None, None, "fsdp")),
        ("blocks/adaln/bias", (28, 384), P()),
    ],
)
def test_the_table(path: str, shape: tuple[int, ...], wanted: P) -> None:
    found = leaf_spec(tuple(path.split("/")), shape, MESH)  # type: ignore[arg-type]
    pad = len(shape)
    assert tuple(found) + (None,) * (pad - len(found)) == tuple(wanted) + (None,) * (pad - len(wanted))


@pytest.fixture(scope="module")
def eight() -> dict:
    script = Path(__file__).parent / "mesh_run.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("mesh", ["data", "fsdp", "tensor", "all"])
@pytest.mark.timeout(600)
def test_eight_devices_train_as_one_does(eight: dict, mesh: str) -> None:
    one, many = eight["runs"]["one"], eight["runs"][mesh]
    assert one["losses"][-1] < 0.99 * one["losses"][0]
    np.testing.assert_allclose(many["losses"], one["losses"], atol=1e-5)
    np.testing.assert_allclose(many["norms"], one["norms"], rtol=1e-4)
    np.testing.assert_allclose(many["ema"], one["ema"], rtol=1e-5)


def test_parameters_averages_and_moments_are_split_alike(eight: dict) -> None:
    wanted = {"one": 1, "data": 1, "fsdp": 1 / 8, "tensor": 1 / 4, "all": 1 / 4}
    assert {name: run["fractions"] for name, run in eight["runs"].items()} == {k: [v] * 4 for k, v in wanted.items()}


def test_sizes_that_do_not_divide_are_refused(eight: dict) -> None:
    batch, devices, zero = eight["refused"]
    assert "batch size 12" in batch
    assert "8 devices" in devices
    assert "tensor=0" in zero


def test_one_device_is_a_mesh_too() -> None:
    mesh = MeshConfig().build(jax.devices()[:1])
    assert put_batch({"image": np.ones((3, 2))}, mesh)["image"].shape == (3, 2)
    with pytest.raises(BadInput, match="1 devices"):
        MeshConfig(data=2).build(jax.devices()[:1])
