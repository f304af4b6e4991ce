import gzip
import struct
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from graftax.data.pack import first_per_class, pack, pack_folder, read_idx, unpack
from graftax.errors import BadInput


def write_idx(path: Path, array: np.ndarray) -> None:
    header = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def idx_folder(folder: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    images = {}
    for stem in ("train", "t10k"):
        images[stem] = rng.integers(0, 256, (40, 5, 3), dtype=np.uint8)
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", images[stem])
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", np.arange(40, dtype=np.uint8) % 10)
    return images


def test_a_packed_folder_reads_back_pixel_for_pixel(tmp_path: Path) -> None:
    images = idx_folder(tmp_path, np.random.default_rng(0))
    size = pack_folder(tmp_path, tmp_path / "out.xz", {"train": ("train", 3), "test": ("t10k", 1)})
    data = (tmp_path / "out.xz").read_bytes()
    assert len(data) == size
    splits = unpack(data)
    order = [c + 10 * i for c in range(10) for i in range(3)]
    np.testing.assert_array_equal(splits["train"][0], images["train"][order])
    np.testing.assert_array_equal(splits["train"][1], np.repeat(np.arange(10), 3))
    np.testing.assert_array_equal(splits["test"][0], images["t10k"][:10])


def test_read_idx_refuses_what_is_not_idx(tmp_path: Path) -> None:
    (tmp_path / "float").write_bytes(b"\x00\x00\x0d\x01\x00\x00\x00\x01abcd")
    with pytest.raises(BadInput, match="00000d01, expected 000008"):
        read_idx(tmp_path / "float")
    (tmp_path / "short").write_bytes(b"\x00\x00\x08\x01\x00\x00\x00\x09abcd")
    with pytest.raises(BadInput, match=r"4 bytes of data, expected \(9,\)"):
        read_idx(tmp_path / "short")
    with pytest.raises(BadInput, match="no such file"):
        read_idx(tmp_path / "absent")


def test_too_few_images_of_a_class_are_refused() -> None:
    with pytest.raises(BadInput, match="class 1: 1 images, expected at least 2"):
        first_per_class(np.array([0, 0, 1]), 2, 2)


def test_pack_refuses_uneven_splits_and_other_types() -> None:
    with pytest.raises(BadInput, match="multiple of 2"):
        pack({"train": np.zeros((3, 2, 2), np.uint8)}, 2)
    with pytest.raises(BadInput, match="float32"):
        pack({"train": np.zeros((4, 2, 2), np.float32)}, 2)  # pyright: ignore[reportArgumentType]


def test_damaged_bytes_are_refused() -> None:
    data = pack({"train": np.zeros((4, 2, 2), np.uint8)}, 2)
    for broken in (data[:-9], b"not xz at all", b""):
        with pytest.raises(BadInput, match="packed image set"):
            unpack(broken)


def test_the_shipped_set_and_its_notice_stay_below_their_budget() -> None:
    folder = resources.files("graftax.data").joinpath("fashion_mnist")
    files = {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}
    assert sum(map(len, files.values())) <= 5_900_000
    assert b"Zalando SE" in files["NOTICE"]
    assert b"Permission is hereby granted" in files["NOTICE"]
