"""The reader against PyTorch itself: types, strides, shared storages, containers."""

import argparse
import collections
import gc
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from golden_checkpoints import NAMES, golden, load_with_torch

from graftax.checkpoint.torch_reader import Record, read_torch
from graftax.errors import BadInput

torch = pytest.importorskip("torch")


def save(tmp_path, content, **options):
    torch.save(content, tmp_path / "file.pt", **options)
    return tmp_path / "file.pt"


def assert_equal(found, expected):
    assert found.shape == tuple(expected.shape)
    if expected.dtype == torch.bfloat16:
        assert found.dtype == ml_dtypes.bfloat16
        found, expected = found.view(np.int16), expected.view(torch.int16)
    assert found.dtype == expected.numpy().dtype
    assert np.array_equal(found, expected.numpy())


@pytest.mark.parametrize("name", NAMES)
def test_goldens_equal_torch_load(name):
    found, expected = read_torch(golden(name)), load_with_torch(golden(name))
    found = found.get("ema", found)
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert_equal(found[key], tensor)


FLOATS = ("float64", "float32", "float16", "bfloat16")
OTHERS = ("int64", "int32", "int16", "int8", "uint8", "bool")


@pytest.mark.parametrize("dtype", FLOATS + OTHERS)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (5,), (2, 3, 4)])
def test_element_types_and_shapes(dtype, shape, tmp_path):
    tensor = torch.randn(shape).mul(3).to(getattr(torch, dtype))
    assert_equal(read_torch(save(tmp_path, {"w": tensor}))["w"], tensor)


def test_views_of_one_storage(tmp_path):
    base = torch.arange(60.0).reshape(3, 4, 5)
    views = {
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "every_second": base[:, ::2, 1::2],
        "tail": base.reshape(-1)[37:],
        "column": base[1, :, 3],
        "overlapping": base.reshape(-1)[:20].as_strided((5, 4), (3, 2)),
    }
    found = read_torch(save(tmp_path, views))
    for key, tensor in views.items():
        assert_equal(found[key], tensor)
    assert np.shares_memory(found["base"], found["transposed"])
    assert np.shares_memory(found["base"], found["tail"])


def test_training_checkpoint_with_everything_torch_writes(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.ones(4, 3), "exp_avg_sq": torch.zeros(4, 3)}
    group = {"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 0, "amsgrad": False, "fused": None, "params": [0]}
    content = {
        "model": model.state_dict(),  # an OrderedDict with an attribute, _metadata
        "opt": {"state": {0: moments}, "param_groups": [group]},  # as AdamW has it
        "args": argparse.Namespace(lr=1e-4, name="run", tags=["a", None, (1, 2)], big=2**40, flag=True),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "size": torch.Size([2, 3]),
        "ordered": collections.OrderedDict(b=1, a=2.5),
    }
    found = read_torch(save(tmp_path, content))
    assert_equal(found["model"]["0.weight"], model[0].weight.detach())
    assert found["opt"]["param_groups"] == [group]
    assert_equal(found["opt"]["state"][0]["step"], moments["step"])
    assert_equal(found["opt"]["state"][0]["exp_avg"], moments["exp_avg"])
    assert found["args"] == Record({"lr": 1e-4, "name": "run", "tags": ["a", None, (1, 2)], "big": 2**40, "flag": True})
    assert found["parameter"].tolist() == [1, 1]
    assert found["size"] == (2, 3)
    assert found["ordered"] == {"b": 1, "a": 2.5}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(protocol, tmp_path):
    content = {"ema": {"w": torch.arange(6.0).reshape(2, 3)}, "args": argparse.Namespace(x="é")}
    found = read_torch(save(tmp_path, content, pickle_protocol=protocol))
    assert found["ema"]["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["args"].fields == {"x": "é"}


@pytest.mark.parametrize("dtype", FLOATS + OTHERS)
def test_format_from_before_1_6(dtype, tmp_path):
    base = torch.arange(24.0).to(getattr(torch, dtype)).reshape(2, 3, 4)
    views = {"base": base, "turned": base.permute(2, 0, 1), "tail": base.reshape(-1)[13:], "other": base[0].clone()}
    found = read_torch(save(tmp_path, {"model": views, "step": 3}, _use_new_zipfile_serialization=False))
    assert found["step"] == 3
    for key, tensor in views.items():
        assert_equal(found["model"][key], tensor)
    assert np.shares_memory(found["model"]["base"], found["model"]["tail"])


def test_damaged_files_of_that_format_are_refused(tmp_path):
    path = save(tmp_path, {"w": torch.arange(1000.0)}, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    length = (1000).to_bytes(8, "little")
    damaged = {
        "truncated": whole[:-1],
        "where it should be": whole.replace(length, (999).to_bytes(8, "little")),
        "expected 1001": whole.replace(b"M\xe9\x03.", b"M\xea\x03."),
        "byte order": whole.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
        "does not fit into the file": whole.replace(b"M\xe8\x03N", b"M\xff\xffN"),
    }
    for reason, data in damaged.items():
        assert data != whole, reason
        path.write_bytes(data)
        with pytest.raises(BadInput, match=reason):
            read_torch(path)


@pytest.mark.parametrize("content", [{"w": torch.ones(3, dtype=torch.complex64)}, {"w": torch.ones(3).to_sparse()}])
def test_other_tensors_are_refused(content, tmp_path):
    with pytest.raises(BadInput, match="not on the list"):
        read_torch(save(tmp_path, content))


def test_large_file_is_mapped_not_read(tmp_path):
    path = save(tmp_path, {f"w{i}": torch.full((1 << 21,), float(i)) for i in range(4)})  # 32 MB
    gc.collect()
    tracemalloc.start()
    found = read_torch(path)
    assert found["w3"][-1] == 3
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert not found["w3"].flags.writeable
