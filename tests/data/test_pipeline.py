import json
import time

import numpy as np
import pytest

from graftax.data.pipeline import Batches, batches
from graftax.errors import BadInput

COUNT = 50


def stream(batch_size: int = 10, seed: int = 3, **options: object) -> Batches:
    """Batches of 2x2 records whose left column holds the label and whose right column holds its negative."""
    labels = np.arange(COUNT, dtype=np.int32)
    images = np.stack([labels, -labels], -1).astype(np.float32)  # (n, 2)
    images = np.broadcast_to(images[:, None, :, None], (COUNT, 2, 2, 1))
    return batches({"image": np.ascontiguousarray(images), "label": labels}, batch_size, seed, **options)  # pyright: ignore


def labels_of(data: Batches, count: int) -> np.ndarray:
    return np.concatenate([next(data)["label"] for _ in range(count)])


def test_batches_pair_images_with_their_labels() -> None:
    batch = next(stream())
    assert batch["image"].shape == (10, 2, 2, 1)
    assert batch["image"].dtype == np.float32
    assert batch["label"].shape == (10,)
    assert batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


def test_every_epoch_is_a_new_permutation() -> None:
    seen = labels_of(stream(), 10)
    first, second = seen[:COUNT], seen[COUNT:]
    np.testing.assert_array_equal(np.sort(first), np.arange(COUNT))
    np.testing.assert_array_equal(np.sort(second), np.arange(COUNT))
    assert (first != second).any()
    assert (first != np.arange(COUNT)).any()


def test_no_record_is_lost_where_batches_do_not_divide_the_set() -> None:
    seen = labels_of(stream(batch_size=20), 5)  # two epochs, the third batch spans both
    np.testing.assert_array_equal(np.bincount(seen), np.full(COUNT, 2))


def test_order_depends_on_the_seed_alone() -> None:
    np.testing.assert_array_equal(labels_of(stream(seed=5), 4), labels_of(stream(seed=5), 4))
    assert (labels_of(stream(seed=5), 4) != labels_of(stream(seed=6), 4)).any()


@pytest.mark.parametrize("transform", ["none", "flip"])
def test_state_restores_the_exact_position(transform: str) -> None:
    data = stream(transform=transform)
    labels_of(data, 7)
    state = json.loads(json.dumps(data.state()))
    expected = [next(data) for _ in range(5)]
    for other in (stream(transform=transform), data):  # a fresh process, and going back
        other.restore(state)
        for batch in expected:
            got = next(other)
            np.testing.assert_array_equal(got["label"], batch["label"])
            np.testing.assert_array_equal(got["image"], batch["image"])


def test_processes_share_the_same_global_batches() -> None:
    parts = [stream(process_index=i, process_count=2, transform="flip") for i in range(2)]
    whole = stream(transform="flip")
    for _ in range(7):
        expected, got = next(whole), [next(p) for p in parts]
        for key in expected:
            np.testing.assert_array_equal(expected[key][0::2], got[0][key])
            np.testing.assert_array_equal(expected[key][1::2], got[1][key])


def test_flip_is_a_fair_coin_per_record_and_epoch() -> None:
    data = stream(transform="flip")
    seen = [next(data) for _ in range(100)]
    labels = np.concatenate([b["label"] for b in seen])
    images = np.concatenate([b["image"] for b in seen])[..., 0]
    np.testing.assert_array_equal(np.abs(images), np.abs(labels)[:, None, None] * np.ones((1, 2, 2)))
    flipped = (images[:, 0, 0] < 0)[labels > 0]
    assert 0.45 < flipped.mean() < 0.55
    by_record = [flipped[labels[labels > 0] == i] for i in range(1, COUNT)]
    assert sum(0 < f.mean() < 1 for f in by_record) > 45  # changes from epoch to epoch


def test_a_state_of_other_data_is_refused() -> None:
    state = stream().state()
    with pytest.raises(BadInput, match="batch_size 10, expected 5"):
        stream(batch_size=5).restore(state)
    with pytest.raises(BadInput, match="seed 3, expected 4"):
        stream(seed=4).restore(state)
    with pytest.raises(BadInput, match="next_batch None"):
        stream().restore({})


def test_arguments_that_do_not_fit_are_refused() -> None:
    images, labels = np.zeros((4, 2, 2, 1), np.float32), np.zeros(4, np.int32)
    with pytest.raises(BadInput, match="expected float32"):
        batches({"image": images.astype(np.uint8), "label": labels}, 2, 0)
    with pytest.raises(BadInput, match=r"float32\(0, 2, 2, 1\), expected float32 \(n >= 1"):
        batches({"image": images[:0], "label": labels[:0]}, 2, 0)
    with pytest.raises(BadInput, match=r"int32\(3,\), expected int32 \(4,\)"):
        batches({"image": images, "label": labels[:3]}, 2, 0)
    with pytest.raises(BadInput, match="multiple of process_count 2"):
        batches({"image": images, "label": labels}, 3, 0, 0, 2)
    with pytest.raises(BadInput, match=r"process_index 2: expected within 0..1"):
        batches({"image": images, "label": labels}, 2, 0, 2, 2)
    with pytest.raises(BadInput, match="transform 'blur'"):
        batches({"image": images, "label": labels}, 2, 0, transform="blur")


def test_batches_are_fast_enough_for_the_demo() -> None:
    latents = np.zeros((14500, 8, 8, 4), np.float32)
    data = batches({"image": latents, "label": np.zeros(14500, np.int32)}, 128, 0, transform="flip")
    next(data)
    start = time.perf_counter()
    for _ in range(50):
        next(data)
    assert 50 * 128 / (time.perf_counter() - start) > 5000  # images per second; about 30,000 on a quiet core
