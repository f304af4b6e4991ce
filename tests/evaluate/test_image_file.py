import zipfile

import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.evaluate.image_file import open_images, read_moments

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), np.uint8)
MOMENTS = {"mu": np.arange(3.0), "sigma": np.eye(3), "mu_s": np.zeros(2), "sigma_s": np.eye(2)}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", ["arr_0", "images"])
def test_batches_are_the_images_in_order(tmp_path, save, name):
    save(tmp_path / "a.npz", **{name: IMAGES, "labels": np.arange(7)})
    found = open_images(tmp_path / "a.npz")
    assert found is not None
    assert len(found) == 7
    parts = list(found.batches(3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert np.array_equal(np.concatenate(parts), IMAGES)


def test_adms_name_comes_first(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES[:1], arr_0=IMAGES)
    assert len(open_images(tmp_path / "a.npz") or ()) == 7


def test_moments(tmp_path):
    np.savez(tmp_path / "m.npz", **MOMENTS)
    assert open_images(tmp_path / "m.npz") is None
    found = read_moments(tmp_path / "m.npz")
    assert {name: array.tolist() for name, array in found.items()} == {k: v.tolist() for k, v in MOMENTS.items()}
    np.savez(tmp_path / "i.npz", IMAGES)
    assert read_moments(tmp_path / "i.npz") == {}


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (IMAGES.astype(np.float32), "float32"),
        (IMAGES[..., :1], r"\(7, 4, 5, 1\)"),
        (IMAGES[:0], r"\(0, 4, 5, 3\)"),
        (IMAGES[0], r"\(4, 5, 3\)"),
        (np.asfortranarray(IMAGES), "Fortran"),
    ],
)
def test_other_images_are_refused(tmp_path, images, reason):
    np.savez(tmp_path / "a.npz", images)
    with pytest.raises(BadInput, match=reason):
        open_images(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sigma": np.eye(2)}, r"mu \(3,\) with sigma \(2, 2\)"),
        ({"mu_s": np.array([0, np.nan])}, "mu_s has entries that are not finite"),
        ({"sigma_s": None}, "sigma_s is not a file"),
    ],
)
def test_other_moments_are_refused(tmp_path, change, reason):
    np.savez(tmp_path / "m.npz", **{name: array for name, array in (MOMENTS | change).items() if array is not None})
    with pytest.raises(BadInput, match=reason):
        read_moments(tmp_path / "m.npz")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(BadInput, match="no such file"):
        open_images(path)
    path.write_text("hello")
    with pytest.raises(BadInput, match=r"not an \.npz file"):
        open_images(path)
    np.savez(path, IMAGES.astype(object))
    with pytest.raises(BadInput, match="object"):
        open_images(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00")
    with pytest.raises(BadInput, match="cannot be read"):
        open_images(path)


def test_a_file_that_ends_early_is_noticed(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, IMAGES)
    with zipfile.ZipFile(path) as archive:
        content = archive.read("arr_0.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", content[:-1])
    found = open_images(path)
    assert found is not None
    with pytest.raises(BadInput, match=r"images 6..6 of 7"):
        list(found.batches(3))
