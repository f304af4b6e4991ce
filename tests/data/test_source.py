from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftax.data.source import load_source, prepare
from graftax.errors import BadInput


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_the_embedded_set_is_balanced_garments() -> None:
    for split, per_class in (("train", 1450), ("test", 200)):
        data = load_source("fashion_mnist", split)
        assert data.images.shape == (10 * per_class, 28, 28, 1)
        assert data.images.dtype == np.uint8
        assert data.labels.dtype == np.int32
        assert data.num_classes == len(data.class_names) == 10
        np.testing.assert_array_equal(np.bincount(data.labels), np.full(10, per_class))
    # trousers are two upright legs: bright down the sides, dark between them at the bottom
    trousers = data.images[data.labels == data.class_names.index("trouser")].mean(0)[..., 0]
    assert trousers[24, 13:15].mean() < 0.6 * trousers[24, [10, 17]].mean()


def test_npz_without_channels_gets_one_and_all_of_it_is_train(tmp_path: Path) -> None:
    images = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    data = load_source(save(tmp_path / "toy.npz", images=images, labels=np.array([2, 0, 1])))
    np.testing.assert_array_equal(data.images[..., 0], images)
    np.testing.assert_array_equal(data.labels, [2, 0, 1])
    assert (data.name, data.num_classes, data.labels.dtype) == ("toy", 3, np.int32)
    with pytest.raises(BadInput, match=r"held_out 0\.0 leaves none"):
        load_source(tmp_path / "toy.npz", "test")


def test_held_out_images_are_a_partition_drawn_by_seed(tmp_path: Path) -> None:
    images = np.arange(50, dtype=np.uint8).reshape(50, 1, 1)
    path = save(tmp_path / "toy.npz", images=images, labels=np.zeros(50, int))
    parts = {(s, seed): load_source(path, s, 0.2, seed).images.ravel() for s in ("train", "test") for seed in (0, 1)}
    assert len(parts["test", 0]) == 10
    for seed in (0, 1):
        both = np.concatenate([parts["train", seed], parts["test", seed]])
        np.testing.assert_array_equal(np.sort(both), np.arange(50))
    assert set(parts["test", 0]) != set(parts["test", 1])
    np.testing.assert_array_equal(parts["test", 0], load_source(path, "test", 0.2, 0).images.ravel())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 4, 4), np.uint8)}, "keys .'images'., expected 'images' and 'labels'"),
        ({"images": np.zeros((2, 4, 4)), "labels": np.zeros(2, int)}, r"'images' is float64\(2, 4, 4\), expected uint8"),
        ({"images": np.zeros((2, 4), np.uint8), "labels": np.zeros(2, int)}, r"'images' is uint8\(2, 4\)"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, int)}, r"'labels' is int64\(3,\), expected integ"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(2)}, r"'labels' is float64\(2,\)"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, -1])}, "'labels' holds -1"),
        ({"images": np.array([{}, {}], object), "labels": np.zeros(2, int)}, "allow_pickle"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load_source(save(tmp_path / "bad.npz", **arrays))


def test_what_is_no_npz_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"hello", b"PK\x03\x04broken"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(BadInput, match=r"bad\.npz"):
            load_source(tmp_path / "bad.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(BadInput, match=r"array\.npy"):
        load_source(tmp_path / "array.npy")
    with pytest.raises(BadInput, match=r"no such file, expected 'fashion_mnist', an \.npz"):
        load_source("cifar")
    with pytest.raises(BadInput, match="split 'valid'"):
        load_source("fashion_mnist", "valid")
    with pytest.raises(BadInput, match="its own test split"):
        load_source("fashion_mnist", held_out=0.1)


def test_prepare_scales_and_centres_on_background() -> None:
    images = np.array([0, 255, 51, 204], np.uint8).reshape(1, 2, 2, 1)
    out = prepare(images, 4)
    expected = np.full((4, 4), -1.0)
    expected[1:3, 1:3] = [[-1.0, 1.0], [-0.6, 0.6]]
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[0, :, :, 0], expected, atol=1e-6)


def test_prepare_refuses_larger_images_and_floats() -> None:
    with pytest.raises(BadInput, match="28x28 pixels do not fit size 16"):
        prepare(np.zeros((1, 28, 28, 1), np.uint8), 16)
    with pytest.raises(BadInput, match="expected uint8"):
        prepare(np.zeros((1, 8, 8, 1), np.float32), 16)  # pyright: ignore[reportArgumentType]
