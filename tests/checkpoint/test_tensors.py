"""State dicts from both formats."""

import hashlib

import ml_dtypes
import numpy as np
import pytest

from graftax.checkpoint.tensors import read_tensors, write_safetensors
from graftax.checkpoint.torch_writer import write_torch
from graftax.errors import BadInput

W = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


def test_ema_is_preferred(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "run.pt"
    trees = {name: {"w": torch.full((2,), float(i))} for i, name in enumerate(("ema", "model", "state_dict"))}
    for left_out, expected in ((), 0.0), (("ema",), 1.0), (("ema", "model"), 2.0):
        torch.save({"steps": 3} | {name: tree for name, tree in trees.items() if name not in left_out}, path)
        tensors, source = read_tensors(path)
        assert tensors["w"].tolist() == [expected, expected]
        assert source.entry == ("ema", "model", "state_dict")[int(expected)]


def test_source_tells_name_and_digest(tmp_path):
    for suffix in (".pt", ".pth"):
        path = tmp_path / f"x{suffix}"
        write_torch(path, W)
        tensors, source = read_tensors(path)
        assert np.array_equal(tensors["w"], W["w"])
        assert (source.name, source.entry) == (path.name, "")
        assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_safetensors_of_all_float_types_and_layouts(tmp_path):
    given = {str(d): np.arange(6).reshape(2, 3).astype(d) for d in ("f4", "f2", "f8", "i8", ml_dtypes.bfloat16)}
    given |= {"transposed": W["w"].T, "scalar": np.array(3, np.float32)}
    write_safetensors(tmp_path / "x.safetensors", given, {"note": "hello"})
    tensors, source = read_tensors(tmp_path / "x.safetensors")
    assert source.metadata == {"note": "hello"}
    assert tensors.keys() == given.keys()
    for name, expected in given.items():
        assert tensors[name].dtype == expected.dtype
        assert np.array_equal(tensors[name], expected)


def test_damaged_safetensors_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, W, {})
    whole = path.read_bytes()
    for damaged in (whole[:-5], whole[:10], b"", b"\xff" * 8 + whole[8:], whole[:9] + b"}" + whole[10:]):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"x\.safetensors: not a readable"):
            read_tensors(path)


def test_other_contents_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    for content, words in (
        ({"epoch": 3}, "'epoch' is no tensor"),
        ({"ema": {"w": {"nested": torch.ones(1)}}}, "'w' is no tensor"),
        ({}, "none is no tensor"),
        ({3: torch.ones(1)}, "int is no tensor"),
    ):
        torch.save(content, path)
        with pytest.raises(BadInput, match=words):
            read_tensors(path)


def test_suffix_decides(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"'\.h5'"):
        read_tensors(tmp_path / "x.h5")
