"""Training checkpoints: round trip, mismatches named, damage and left-overs survived."""

import errno
import json
import logging
import os
import subprocess
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from graftax.checkpoint import upkeep
from graftax.checkpoint.hush import hush
from graftax.checkpoint.manager import Checkpoints
from graftax.checkpoint.retention import Retention
from graftax.checkpoint.upkeep import SEAL
from graftax.errors import BadInput
from graftax.train import OptimiserConfig
from graftax.train.state import create_state

OPTIMISER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))


def state(step: int = 0):
    """What a run keeps: float32, bfloat16 and integers, empty nodes and classes of optax among it."""
    params = {"blocks": {"00": {"w/x": jnp.arange(4000.0).reshape(50, 80) + step}}, "half": jnp.ones(3, jnp.bfloat16) * step}
    return {"params": params, "opt": OPTIMISER.init(params), "step": jnp.int32(step)}


def shapes():
    return jax.eval_shape(state)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def fill(folder, steps=(1, 2, 3), keep=2):
    store = Checkpoints(folder, Retention(keep))
    for step in steps:
        store.save(step, state(step), {"metadata": {"lr": 0.1, "tags": ["a"]}, "seed": 7}, {"position": step})
    store.close()


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_round_trip_and_keep(tmp_path):
    store = Checkpoints(tmp_path / "run")
    assert store.latest() is None
    store.close()
    fill(tmp_path / "run")
    store = Checkpoints(tmp_path / "run")
    assert store.latest() == 3
    for step in (2, 3):
        found, extra, position = store.restore(step, shapes())
        assert_same(found, state(step))
        assert extra == {"metadata": {"lr": 0.1, "tags": ["a"]}, "seed": 7}
        assert position == {"position": step}
    with pytest.raises(BadInput, match=r"expected one of \[2, 3\]"):
        store.restore(1, shapes())
    store.close()


@pytest.mark.parametrize("position", [b"\x00\xff", {"a": [1, None]}, None, 5])
def test_data_positions(position, tmp_path):
    store = Checkpoints(tmp_path)
    store.save(1, state(), {}, position)
    assert store.restore(1, shapes())[2] == position
    store.close()


def test_sharding_of_the_abstract_state_is_taken(tmp_path):
    fill(tmp_path, (1,))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    wanted = shapes() | {"params": jax.tree.map(lambda x: x.update(sharding=sharding), shapes()["params"])}
    store = Checkpoints(tmp_path)
    found, _, _ = store.restore(1, wanted)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(found["params"]))
    assert_same(found, state(1))
    store.close()


def test_saved_on_eight_devices_restored_on_four_two_and_one(tmp_path):
    """A training state (moments, averages, bfloat16) laid out by the table of `graftax.train`."""
    script = """
import sys, jax, jax.numpy as jnp, numpy as np
from graftax.checkpoint.manager import Checkpoints
from graftax.train import MeshConfig, OptimiserConfig
from graftax.train.state import create_state
from graftax.train.sharding import shard_tree
rng = np.random.default_rng(0)
params = {"fc1": {"kernel": rng.standard_normal((64, 128), np.float32), "bias": jnp.arange(128.0)},
          "half": jnp.asarray(rng.standard_normal((64, 64)), jnp.bfloat16)}
state = create_state(params, OptimiserConfig().build())
state = jax.tree.map(lambda x: jnp.asarray(np.asarray(rng.standard_normal(x.shape), x.dtype)), state)
spread = shard_tree(state, MeshConfig(data=2, fsdp=4).build())
store = Checkpoints(sys.argv[1])
store.save(5, spread, {}, None)
assert len(spread.trainable["fc1"]["kernel"].addressable_shards) == 8
for mesh in (MeshConfig(fsdp=4), MeshConfig(data=2), MeshConfig(data=1, tensor=2), MeshConfig()):
    count = 4 if mesh.fsdp == 4 else 1 if mesh == MeshConfig() else 2
    like = shard_tree(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state), mesh.build(jax.devices()[:count]))
    found = store.restore(5, like)[0]
    for a, b, c in zip(*map(jax.tree.leaves, (found, state, like)), strict=True):
        assert a.dtype == b.dtype and a.sharding == c.sharding and len(a.sharding.device_set) == count
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
store.close()
np.savez(sys.argv[1] + "/leaves.npz", *[np.asarray(x, np.float32) for x in jax.tree.leaves(state)])
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=os.environ | flags)
    store = Checkpoints(tmp_path)  # in a process that has one device
    params = {
        "fc1": {"kernel": jnp.zeros((64, 128)), "bias": jnp.zeros(128)},
        "half": jnp.zeros((64, 64), jnp.bfloat16),
    }
    found, _, _ = store.restore(5, create_state(params, OptimiserConfig().build()))
    saved = np.load(tmp_path / "leaves.npz")
    for leaf, name in zip(jax.tree.leaves(found), saved.files, strict=True):
        assert leaf.sharding.device_set == {jax.devices()[0]}
        np.testing.assert_array_equal(np.asarray(leaf, np.float32), saved[name])
    store.close()


def test_the_best_score_survives_reopening(tmp_path):
    store = Checkpoints(tmp_path, Retention(1, best="max"))
    for step, score in ((1, 0.5), (2, 0.9), (3, 0.1)):
        store.save(step, state(step), {}, None, score)
    store.save(4, state(4), {}, None)  # not evaluated
    store.close()
    store = Checkpoints(tmp_path, Retention(1, best="max"))
    assert store.best() == 2
    store.save(5, state(5), {}, None, 0.7)
    store.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5"]
    store.save(6, state(6), {}, None, 0.95)
    store.wait()
    assert store.best() == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["6"]
    store.close()


def test_saved_arrays_may_be_donated_at_once(tmp_path):
    store, current = Checkpoints(tmp_path, Retention(3)), state(1)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    for step in (1, 2, 3):
        current = state(step)
        jax.block_until_ready(current)
        store.save(step, current, {}, None)
        jax.block_until_ready(overwrite(current))
    for step in (1, 2, 3):
        assert_same(store.restore(step, shapes())[0], state(step))
    store.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s | {"step": jax.ShapeDtypeStruct((2,), jnp.int32)}, r"step is int32 \(\), expected int32 \(2,\)"),
        (lambda s: s | {"step": jax.ShapeDtypeStruct((), jnp.float32)}, r"step is int32 \(\), expected float32 \(\)"),
        (lambda s: s | {"extra": s["step"]}, r"extra is absent, expected int32"),
        (lambda s: {k: v for k, v in s.items() if k != "opt"}, r"opt/1/0/count is int32 \(\), expected absent"),
        (lambda s: s | {"params": {"other": s["params"]}}, r"params/blocks/00/w/x is float32 \(50, 80\), expected absent"),
    ],
)
def test_mismatch_names_the_path(change, words, tmp_path):
    fill(tmp_path, (1,))
    store = Checkpoints(tmp_path)
    with pytest.raises(BadInput, match=words) as caught:
        store.restore(1, change(shapes()))
    assert "\n" not in str(caught.value)
    assert_same(store.restore(1, shapes())[0], state(1))
    store.close()


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "harm",
    [
        lambda step: flip(largest_file(step)),
        lambda step: largest_file(step).write_bytes(largest_file(step).read_bytes()[:-10]),
        lambda step: largest_file(step).unlink(),
        lambda step: (step / "state" / "_METADATA").write_text("{"),
        lambda step: (step / "record" / "metadata").unlink(),
        lambda step: (step / SEAL).unlink(),
        lambda step: (step / SEAL).write_text("nonsense"),
    ],
)
def test_damaged_newest_falls_back_with_a_warning(harm, tmp_path):
    fill(tmp_path)
    harm(tmp_path / "3")
    with pytest.warns(UserWarning, match="checkpoint 3 .* damaged") as caught:
        store = Checkpoints(tmp_path)
    assert len(caught) == 1
    assert store.latest() == 2
    assert_same(store.restore(2, shapes())[0], state(2))
    assert (tmp_path / "damaged" / "3").is_dir()
    store.save(3, state(3), {}, None)  # the run goes on through the same step
    store.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        store = Checkpoints(tmp_path)
    assert_same(store.restore(3, shapes())[0], state(3))
    store.close()


def test_all_damaged_starts_anew(tmp_path):
    fill(tmp_path)
    for step in ("2", "3"):
        flip(largest_file(tmp_path / step))
    with pytest.warns(UserWarning, match="damaged"):
        store = Checkpoints(tmp_path)
    assert store.latest() is None
    store.close()


def test_left_overs_of_a_killed_save_are_removed(tmp_path):
    """A folder under orbax's temporary name, as a process killed while writing step 4 leaves it. (tests/train kills one.)"""
    fill(tmp_path)
    left = tmp_path / "4.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    (left / "state" / "part").write_bytes(b"x" * 100)
    store = Checkpoints(tmp_path)
    assert store.latest() == 3
    assert not left.exists()
    store.save(4, state(4), {}, None)
    assert_same(store.restore(4, shapes())[0], state(4))
    store.close()


def test_every_checkpoint_is_sealed(tmp_path):
    """The seal is written before the checkpoint has its name, so no kill can leave one without."""
    fill(tmp_path)
    for step in ("2", "3"):
        sums = json.loads((tmp_path / step / SEAL).read_text())
        files = [p for item in ("state", "record") for p in (tmp_path / step / item).rglob("*") if p.is_file()]
        assert {str(p.relative_to(tmp_path / step)) for p in files} == set(sums)
        assert sum(size for size, _ in sums.values()) > 10_000


def test_bad_arguments(tmp_path):
    fill(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="a file"):
        Checkpoints(tmp_path / "file")
    with pytest.raises(BadInput, match="s3://bucket"):
        Checkpoints("s3://bucket/run")
    store = Checkpoints(tmp_path / "run")
    with pytest.raises(BadInput, match="more than 3"):
        store.save(3, state(), {}, None)
    with pytest.raises(BadInput, match="JSON"):
        store.save(4, state(), {"when": object()}, None)
    assert store.latest() == 3
    store.close()


def test_the_record_is_vetted_before_the_arrays(tmp_path):
    def refuse(extra):
        raise BadInput(f"this run has more than {extra}")

    fill(tmp_path, (1,))
    store = Checkpoints(tmp_path)
    with pytest.raises(BadInput, match="this run has more than"):
        store.restore(1, {"other": jax.ShapeDtypeStruct((3,), jnp.float32)}, refuse)
    store.close()


def test_a_commit_that_fails_is_told_leaves_nothing_and_is_not_restored(tmp_path, monkeypatch):
    fill(tmp_path / "run", steps=(1,))
    store = Checkpoints(tmp_path / "run")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(upkeep, "seal", full)
    with pytest.raises(BadInput, match=r"run: step 2 cannot be saved \(no space left on device\)"):  # noqa: PT012
        store.save(2, state(2), {}, None)
        store.wait()
    store.close()
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["1"]
    store = Checkpoints(tmp_path / "run")
    assert store.latest() == 1
    store.save(2, state(2), {}, None)
    store.close()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["1", "2"]


def test_only_the_pages_of_the_background_are_dropped(caplog, monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    hush()
    for text in ("Event loop is closed", "another"):
        sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(text)))
    assert [str(one.exc_value) for one in shown] == ["another"]
    for text in ("Task exception was never retrieved: Error writing in OCDBT database", "a bug of the user's"):
        logging.getLogger("asyncio").error(text)
    assert caplog.messages == ["a bug of the user's"]
