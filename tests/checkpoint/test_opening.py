"""The two doors: goldens in, PyTorch-layout files out, bit-equal under PyTorch."""

import jax
import numpy as np
import pytest
from golden_checkpoints import NAMES, golden, load_with_torch

import graftax
from graftax.checkpoint import export_model, layouts, open_checkpoint, place_params, placing, save_model
from graftax.checkpoint.files import demo_path, sha256
from graftax.checkpoint.tensors import read_tensors, write_safetensors
from graftax.errors import BadInput


def assert_same_model(found, expected):
    assert found[0] == expected[0]
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_exported_goldens_are_bit_equal_in_torch(name, suffix, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    model = open_checkpoint(golden(name), num_heads=4, window=4)
    path = tmp_path / f"out{suffix}"
    export_model(path, *model[:2])
    found = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    expected = load_with_torch(golden(name))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key].view(torch.int32), expected[key].view(torch.int32)) for key in expected)
    assert_same_model(open_checkpoint(path, num_heads=4, window=4), model)


def test_provenance():
    path = golden("graft_mha_swa_50p")
    assert open_checkpoint(path, num_heads=4)[2] == {
        "source": path.name, "sha256": sha256(path), "format": "dit", "entry": "ema"
    }  # fmt: skip
    assert "entry" not in open_checkpoint(golden("dit"), num_heads=4)[2]


def test_exported_safetensors_carry_their_spec(tmp_path):
    model = open_checkpoint(golden("graft_mha_swa_50p"), num_heads=4, window=3)
    path = tmp_path / "out.safetensors"
    export_model(path, *model[:2])
    assert_same_model(open_checkpoint(path), model)
    assert_same_model(open_checkpoint(path, num_heads=4, window=3), model)
    for overrides in ({"window": 2}, {"num_heads": 8}, {"windows": 3}):
        with pytest.raises(BadInput, match=f"out.safetensors: override.*{next(iter(overrides))}"):
            open_checkpoint(path, **overrides)


def test_plain_safetensors_in_torch_layout(tmp_path):
    path = tmp_path / "plain.safetensors"
    write_safetensors(path, read_tensors(golden("dit"))[0], {"format": "pt"})
    model = open_checkpoint(path, num_heads=4)
    assert model[2] == {"source": path.name, "sha256": sha256(path), "format": "dit"}
    assert_same_model(model, open_checkpoint(golden("dit"), num_heads=4))


def test_folders_keep_the_first_provenance(tmp_path):
    spec, params, meta = open_checkpoint(golden("dit"), num_heads=4)
    save_model(tmp_path / "model", spec, params, {**meta, "edits": ["swap"]})
    again = open_checkpoint(tmp_path / "model", num_heads=4)
    assert_same_model(again, (spec, params))
    assert again[2] == {"source": "dit.pt", "sha256": meta["sha256"], "format": "graftax", "edits": ["swap"]}
    with pytest.raises(BadInput, match="num_heads=8"):
        open_checkpoint(tmp_path / "model", num_heads=8)


def test_errors_name_the_file(tmp_path):
    given = dict(read_tensors(golden("dit"))[0])
    del given["blocks.3.mlp.fc2.bias"]
    write_safetensors(tmp_path / "part.safetensors", given, {})
    with pytest.raises(BadInput, match=r"part\.safetensors: .*blocks\.3\.mlp\.fc2\.bias"):
        open_checkpoint(tmp_path / "part.safetensors", num_heads=4)
    for path in (tmp_path / "absent.pt", tmp_path, tmp_path / "x.bin"):
        with pytest.raises(BadInput, match=path.name):
            open_checkpoint(path)


def test_export_by_suffix(tmp_path):
    spec, params, _ = open_checkpoint(golden("dit"), num_heads=4)
    with pytest.raises(BadInput, match=r"'\.onnx'"):
        export_model(tmp_path / "x.onnx", spec, params)
    export_model(tmp_path / "x.pt", spec, params)
    with pytest.raises(BadInput):
        export_model(tmp_path / "x.pt", spec, {})
    assert_same_model(open_checkpoint(tmp_path / "x.pt", num_heads=4), (spec, params))


def test_a_layout_can_be_named(tmp_path):
    model = open_checkpoint(golden("dit"), "dit", num_heads=4)
    assert_same_model(open_checkpoint(golden("dit"), num_heads=4), model)
    save_model(tmp_path / "ours", *model)
    assert_same_model(open_checkpoint(tmp_path / "ours", "graftax"), model)
    assert {"dit", "diffusers-dit"} <= set(layouts())
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("{}")
    for path, layout, message in (
        (golden("dit"), "onnx", r"layout 'onnx': not known, expected one of \('graftax', 'dit'"),
        (golden("dit"), "graftax", r"dit\.pt: layout 'graftax': this is no model of ours"),
        (tmp_path / "ours", "dit", r"layout 'dit': this is a model in the layout 'graftax'"),
        (tmp_path / "theirs", "dit", r"layout 'dit': this is a folder with a config\.json"),
        (tmp_path / "theirs", "graftax", r"layout 'graftax': this is a folder with a config\.json"),
    ):
        with pytest.raises(BadInput, match=message):
            open_checkpoint(path, layout, num_heads=4)
    with pytest.raises(BadInput, match="layout 'diffusers-dit' is a folder"):
        export_model(tmp_path / "x.pt", *model[:2], layout="diffusers-dit")
    with pytest.raises(BadInput, match=r"layout 'pixart', expected one of \('dit', 'diffusers-dit', .*\) for a dit"):
        export_model(tmp_path / "x.pt", *model[:2], layout="pixart")


def test_parameters_are_views_of_the_file_until_they_are_placed(tmp_path, monkeypatch):
    spec, params, _ = open_checkpoint(golden("dit"), num_heads=4)
    save_model(tmp_path, spec, params, {}, dtype="float16")
    _, half, _ = open_checkpoint(tmp_path)
    kernel = half["blocks"]["02"]["mlp"]["fc1"]["kernel"]
    assert isinstance(kernel, np.memmap)
    assert (kernel.dtype, place_params(half)["blocks"]["02"]["mlp"]["fc1"]["kernel"].dtype) == (np.float16, np.float32)
    assert place_params(half, "bfloat16")["pos_embed"].dtype == jax.numpy.bfloat16
    with pytest.raises(BadInput, match="dtype: got 'int32', expected a float type"):
        place_params(half, "int32")
    monkeypatch.setattr(placing, "LARGE", 1000)
    assert place_params(half)["pos_embed"].dtype == np.float16
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("all",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = place_params(half, "float32", jax.tree.map(lambda _: sharding, half))
    assert placed["pos_embed"].sharding == sharding
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32)), placed, half)


def test_the_shipped_model_has_a_name():
    model = graftax.load("demo")
    spec, params, _ = open_checkpoint(demo_path("dit"))
    assert_same_model((model.spec, model.params), (spec, params))
    assert model.spec.depth == 10
