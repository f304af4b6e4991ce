"""Files written without PyTorch, read by PyTorch."""

import ml_dtypes
import numpy as np
import pytest

from graftax.checkpoint.members import stored_members
from graftax.checkpoint.torch_reader import STORAGES, read_torch
from graftax.checkpoint.torch_writer import ALIGNMENT, write_torch
from graftax.errors import BadInput

torch = pytest.importorskip("torch")


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {f"of_{kind}": (rng.standard_normal((3, 5)) * 3).astype(dtype) for kind, dtype in STORAGES.items()}
    found["transposed"] = np.arange(12, dtype=np.float32).reshape(3, 4).T
    return found | {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3), np.float32), "naïve.名": np.ones(2)}


@pytest.mark.parametrize("key", [None, "ema"])
@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_what_is_written(key, mmap, tmp_path):
    path = tmp_path / "out.pt"
    write_torch(path, tensors(), key)
    loaded = torch.load(path, weights_only=True, mmap=mmap)
    loaded = loaded[key] if key else loaded
    assert list(loaded) == list(tensors())
    for name, expected in tensors().items():
        found = loaded[name]
        assert tuple(found.shape) == expected.shape
        if expected.dtype == ml_dtypes.bfloat16:
            found, expected = found.view(torch.int16), expected.view(np.int16)
        assert np.array_equal(found.numpy(), expected)


def test_own_reader_gives_the_same_back(tmp_path):
    write_torch(tmp_path / "out.pt", tensors())
    for name, found in read_torch(tmp_path / "out.pt").items():
        assert found.dtype == tensors()[name].dtype
        assert np.array_equal(found, tensors()[name])


def test_storages_are_aligned_and_files_reproducible(tmp_path):
    write_torch(tmp_path / "a.pt", tensors())
    write_torch(tmp_path / "b.pt", tensors())
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    starts = [member.start for name, member in stored_members(tmp_path / "a.pt").items() if name.startswith("data/")]
    assert starts
    assert all(start % ALIGNMENT == 0 for start in starts)


def test_types_torch_lacks_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(BadInput, match="odd is complex64"):
        write_torch(tmp_path / "out.pt", {"odd": np.zeros(2, np.complex64)})
    with pytest.raises(BadInput, match="does not exist"):
        write_torch(tmp_path / "nowhere" / "out.pt", {"w": np.zeros(2)})
    assert not list(tmp_path.iterdir())
