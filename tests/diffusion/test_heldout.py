"""The one way in which held-out data are noised."""

import numpy as np
import pytest

from graftax.diffusion import Process, heldout_set
from graftax.errors import BadInput

RNG = np.random.default_rng(0)
DATA = {"image": RNG.standard_normal((10, 4, 4, 2), np.float32), "label": np.arange(10), "text": np.zeros((10, 3, 5))}


def test_times_cover_the_process_evenly_and_all_is_fixed_by_the_seed():
    held = heldout_set(DATA, Process().respaced(100), batch_size=4)
    assert (held.size, len(held.t), held.noise.shape) == (4, 8, (8, 4, 4, 2))
    np.testing.assert_array_equal(np.sort(held.t), (np.arange(8) + 0.5) / 8 * 100 // 1)
    again, other = (heldout_set(DATA, Process().respaced(100), batch_size=4, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(held.noise, again.noise)
    np.testing.assert_array_equal(held.t, again.t)
    assert not np.array_equal(held.noise, other.noise)
    batches = list(held.batches())
    assert len(batches) == 2
    data, t, noise = batches[1]
    assert set(data) == {"image", "label", "text"}
    np.testing.assert_array_equal(data["label"], [4, 5, 6, 7])
    assert (data["label"].dtype, data["image"].dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(t, held.t[4:])
    np.testing.assert_array_equal(noise, held.noise[4:])


def test_a_set_smaller_than_a_batch_is_one():
    assert heldout_set(DATA, Process()).size == 10


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        ({**DATA, "label": np.arange(9)}, 4, r"label \(9,\).* expected image \(n, h, w, c\)"),
        ({"image": np.zeros((0, 4, 4, 2))}, 4, "n >= 1"),
        ({"image": np.zeros((4, 4, 2))}, 4, r"image \(4, 4, 2\)"),
        (DATA, 0, "batch_size 0, expected 1 or more"),
    ],
)
def test_what_does_not_go_together_is_refused(data, size, message):
    with pytest.raises(BadInput, match=message):
        heldout_set(data, Process(), batch_size=size)
