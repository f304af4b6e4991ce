import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from graftax import ops
from graftax.backbones.dit import dit_spec, variant
from graftax.errors import BadInput
from graftax.models import param_shapes
from graftax.models.forward import prepare_params
from graftax.ops.placement import place, placing
from graftax.spec import Adapter
from graftax.surgery import replace
from graftax.train import MeshConfig
from graftax.train.sharding import AxisRules, activation_spec, leaf_spec, put_batch, to_host
from graftax.train.sharding_report import sharding_report, state_shapes

MESH = SimpleNamespace(shape={"data": 1, "fsdp": 4, "tensor": 2})


def padded(spec: P, count: int) -> tuple:
    return tuple(spec) + (None,) * (count - len(spec))


@pytest.mark.parametrize(
    ("path", "shape", "wanted"),
    [
        ("blocks/00/mixer/qkv/kernel", (64, 192), P("fsdp", "tensor")),
        ("blocks/00/mixer/proj/kernel", (64, 64), P("tensor", "fsdp")),
        ("opt_state/1/0/mu/blocks/00/mlp/fc2/kernel", (256, 64), P("tensor", "fsdp")),
        ("blocks/00/adaln/kernel", (64, 384), P("tensor", "fsdp")),
        ("y_embedder/embedding", (1001, 64), P(None, "fsdp")),
        ("blocks/00/mlp/fc1/kernel", (65, 127), P()),  # nothing divides
        ("blocks/00/mixer/qkv/bias", (192,), P()),  # small
        ("lora/blocks/00/mixer/qkv/kernel/a", (1152, 8), P("fsdp")),
        ("step", (), P()),
        # Collected blocks: as above behind an axis over blocks, which stays whole.
        ("trainable/blocks/dit/mixer/0_mha/qkv/kernel", (12, 64, 192), P(None, "fsdp", "tensor")),
        ("opt_state/1/0/mu/blocks/dit/mlp/0_mlp/fc2/kernel", (12, 256, 64), P(None, "tensor", "fsdp")),
        ("blocks/dit/adaln/0_adaln/kernel", (8, 64, 384), P(None, "tensor", "fsdp")),
        ("blocks/dit/adaln/0_adaln/bias", (28, 384), P()),
    ],
)
def test_the_table(path: str, shape: tuple[int, ...], wanted: P) -> None:
    found = leaf_spec(tuple(path.split("/")), shape, MESH)  # type: ignore[arg-type]
    assert padded(found, len(shape)) == padded(wanted, len(shape))


def test_other_rules_give_another_table() -> None:
    rules = AxisRules(weights=None, hidden=None, tokens="tensor")
    assert leaf_spec(("qkv", "kernel"), (64, 192), MESH, rules) == P(None, None)  # type: ignore[arg-type]
    stream = ("batch", "tokens", "width")
    assert activation_spec(stream, (8, 16, 64), MESH, rules) == P(("data", "fsdp"), ("tensor",), None)  # type: ignore[arg-type]
    assert activation_spec(stream, (6, 16, 64), MESH) == P(None, None, None)  # type: ignore[arg-type]
    plain = SimpleNamespace(shape={"data": 4})  # a mesh that lacks axes
    assert activation_spec(("batch", "heads"), (8, 4), plain) == P(("data",), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("rules", [{"tokens": "fsdp"}, {"weights": "model"}, {"weights": "tensor"}, {"heads": "data"}])
def test_rules_that_make_no_layout_are_refused(rules: dict) -> None:
    with pytest.raises(BadInput, match=f"mesh rules: {next(iter(rules))}"):
        AxisRules(**rules)


@pytest.mark.parametrize(("text", "sizes"), [("fsdp=8", (1, 8, 1)), ("data=2, fsdp=4,tensor=2", (2, 4, 2))])
def test_a_mesh_can_be_written_down(text: str, sizes: tuple) -> None:
    assert tuple(MeshConfig.parse(text).abstract().shape.values()) == sizes


@pytest.mark.parametrize("text", ["", "8", "fsdp", "fsdp=-1", "fsdp=0", "fsdp=2,fsdp=4", "model=8", "fsdp=1.5"])
def test_what_is_no_mesh_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="mesh"):
        MeshConfig.parse(text)


def test_a_mesh_must_fit_devices_batch_and_heads() -> None:
    mesh = MeshConfig(fsdp=2, tensor=2)
    mesh.check(8, 12)
    mesh.check_heads(6)
    with pytest.raises(BadInput, match="9 devices"):
        mesh.check(9, 12)
    with pytest.raises(BadInput, match="batch size 14: does not divide over 4 devices"):
        mesh.check(8, 14)
    with pytest.raises(BadInput, match="tensor=2 does not divide the model's 7 heads"):
        mesh.check_heads(7)


# --- What it costs -----------------------------------------------------------------------------------------------------


def test_xl2_on_eight_devices_is_an_eighth_on_each() -> None:
    state, mesh = state_shapes(variant("DiT-XL/2"), frozen=("pos_embed",)), MeshConfig(fsdp=8).abstract()
    report = sharding_report(state, mesh)
    assert report.total_bytes == 4 * (4 * 674_834_720 + 256 * 1152 + 2) + 4  # Adam's count and the schedule's, the step
    assert report.device_bytes == pytest.approx(report.total_bytes / 8, rel=2e-3)
    assert not report.whole
    assert not report.indivisible


@pytest.mark.parametrize("plan", ["unroll", "scan"])
def test_blocks_arranged_for_a_plan_are_split_too(plan: str) -> None:
    """As a teacher's are, block by block or stacked."""
    spec = dit_spec(input_size=32, patch_size=2, hidden_size=1152, depth=2, num_heads=16)
    shapes = jax.eval_shape(lambda params: prepare_params(spec, params, plan), param_shapes(spec))
    report = sharding_report(shapes, MeshConfig(fsdp=8).abstract())
    assert not report.whole
    assert report.device_bytes < report.total_bytes * 0.13


SLOTS = {"mixer": "mixer", "channel": "mlp", "modulation": "adaln", "norm": "norm1"}


@pytest.mark.parametrize("kind", sorted(kind for kind, operator in ops.OPERATORS.items() if operator.role in SLOTS))
def test_no_operators_large_leaves_stay_whole(kind: str) -> None:
    spec = dit_spec(input_size=32, patch_size=2, hidden_size=1152, depth=2, num_heads=16)
    spec = replace(f"blocks[*].{SLOTS[ops.operator_class(kind).role]}", kind).on(spec)
    spec = spec.replace(adapters=(Adapter("final/adaln/kernel", 64, 16.0),))
    for mesh in (MeshConfig(fsdp=8), MeshConfig(fsdp=4, tensor=2)):
        report = sharding_report(param_shapes(spec), mesh.abstract())
        assert not report.whole
        assert not report.indivisible
        assert report.device_bytes < report.total_bytes * 0.15


def test_the_report_names_what_is_whole() -> None:
    tree = {
        "a": {"kernel": jax.ShapeDtypeStruct((1153, 1001), jnp.float32)},
        "b": jax.ShapeDtypeStruct((2048, 1024), jnp.float32),
    }
    report = sharding_report(tree, MeshConfig(fsdp=8).abstract(), AxisRules(hidden=None))
    assert (dict(report.whole), dict(report.indivisible)) == ({}, {"a/kernel": 4 * 1153 * 1001})
    placed = {
        "b": jax.ShapeDtypeStruct((2048, 1024), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    }
    report = sharding_report(placed, MeshConfig(fsdp=8).abstract())
    assert dict(report.whole) == {"b": 8 * 2**20}
    assert "b, 8.39 MB" in str(report)
    assert not sharding_report(tree, MeshConfig(data=8).abstract()).whole  # copies are what a data mesh is for


# --- What it computes --------------------------------------------------------------------------------------------------


def test_axes_are_named_to_whoever_asks() -> None:
    seen = []
    x = jnp.ones((2, 3))
    with placing(lambda x, axes: seen.append(axes) or 2 * x):
        assert place(x, "batch", None)[0, 0] == 2
    assert place(x, "batch", None) is x
    assert seen == [("batch", None)]


def mesh_run(mode: str) -> dict:
    command = [sys.executable, Path(__file__).parent / "mesh_run.py", mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_alike(many: dict, one: dict) -> None:
    np.testing.assert_allclose(many["losses"], one["losses"], atol=1e-5)
    np.testing.assert_allclose(many["norms"], one["norms"], rtol=1e-4)
    np.testing.assert_allclose(many["ema"], one["ema"], rtol=1e-5)


@pytest.fixture(scope="module")
def few() -> dict:
    return mesh_run("few")


@pytest.mark.timeout(900)
def test_many_devices_train_as_one_does(few: dict) -> None:
    one = few["runs"]["one"]
    assert one["losses"][-1] < 0.9 * one["losses"][0]
    assert_alike(few["runs"]["all"], one)


def test_parameters_averages_and_moments_are_split_alike(few: dict) -> None:
    wanted = {"one": 1, "all": 1 / 4}
    assert {name: run["parts"] for name, run in few["runs"].items()} == {k: [v] * 4 for k, v in wanted.items()}


def test_files_are_read_to_their_shards(few: dict) -> None:
    assert few["loaded"] == {"whole": [128, 512], "shards": [[32, 256]], "type": "bfloat16", "same": True}


def test_sizes_that_do_not_divide_are_refused(few: dict) -> None:
    batch, devices, zero = few["refused"]
    assert "batch size 12" in batch
    assert "8 devices" in devices
    assert "tensor=0" in zero


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_mesh_trains_alike_and_bfloat16_nearly() -> None:
    runs = mesh_run("many")
    one, rounded = runs.pop("one"), runs.pop("bfloat16")
    for run in runs.values():
        assert_alike(run, one)
    assert rounded["losses"] != one["losses"]
    np.testing.assert_allclose(rounded["losses"], one["losses"], rtol=0.01)
    assert rounded["types"] == ["float32"]  # parameters and averages, whatever products are computed in
    assert runs["fsdp"]["share"] < 0.2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["operators", "streams"])
def test_every_operator_trains_on_a_mesh_as_on_one_device(mode: str) -> None:
    runs = mesh_run(mode)
    assert_alike(runs["all"], runs["one"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_recipes_train_on_many_devices_as_on_one() -> None:
    """Routes, masks, dropped branches and blocks, heads, a teacher, groups of images, features, a tokenizer."""
    for runs in mesh_run("recipes").values():
        one = runs.pop("one")
        for run in runs.values():
            assert_alike(run, one)


def test_one_device_is_a_mesh_too() -> None:
    mesh = MeshConfig().build(jax.devices()[:1])
    batch = put_batch({"image": np.ones((3, 2))}, mesh)
    assert batch["image"].shape == (3, 2)
    np.testing.assert_array_equal(to_host(batch)["image"], np.ones((3, 2)))
    with pytest.raises(BadInput, match="1 devices"):
        MeshConfig(data=2).build(jax.devices()[:1])
