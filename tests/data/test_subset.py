import hashlib
import itertools

import numpy as np
import pytest

from graftax.data.subset import check_subset, digest, stratified
from graftax.errors import BadInput

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), np.arange(95, 105)))  # 95 .. 104 of each


def per_class(indices):
    return np.bincount(LABELS[indices], minlength=10)


def test_so_many_of_every_class():
    found = stratified(LABELS, "12 per class")
    np.testing.assert_array_equal(per_class(found), np.full(10, 12))
    np.testing.assert_array_equal(found, np.unique(found))


@pytest.mark.parametrize(("text", "total"), [("200", 200), ("0.2k", 200), ("123", 123), ("7", 7)])
def test_a_total_is_spread_evenly(text, total):
    counts = per_class(stratified(LABELS, text))
    assert counts.sum() == total
    assert counts.max() - counts.min() == (total % 10 > 0)


def test_a_share_is_that_of_every_class():
    found = stratified(LABELS, "10%")
    assert len(found) == round(0.1 * len(LABELS))
    assert (np.abs(per_class(found) - 0.1 * np.bincount(LABELS)) < 1).all()
    np.testing.assert_array_equal(stratified(LABELS, "100%"), np.arange(len(LABELS)))


def test_subsets_depend_on_the_seed_and_on_nothing_else():
    np.testing.assert_array_equal(stratified(LABELS, "10%", 3), stratified(LABELS, "10 %", 3))
    assert digest(stratified(LABELS, "10%", 3)) != digest(stratified(LABELS, "10%", 4))


def test_larger_subsets_hold_the_smaller_ones():
    parts = [stratified(LABELS, text, 5) for text in ("4 per class", "8 per class", "20%", "50%")]
    for small, large in itertools.pairwise(parts):
        assert set(small) < set(large)


def test_the_hash_is_of_the_indices_and_never_changes():
    assert (
        digest(np.array([1, 2, 700])) == hashlib.sha256(b"".join(i.to_bytes(8, "little") for i in (1, 2, 700))).hexdigest()
    )
    labels = np.arange(1000) % 7
    assert digest(stratified(labels, "8 per class", 0)).startswith("a90a9509643bcd5b")


def test_published_sizes_on_labels_like_imagenet():
    labels = np.repeat(np.arange(1000), 130)
    assert len(stratified(labels, "8k")) == len(stratified(labels, "8 per class")) == 8000
    assert len(stratified(labels, "128 per class")) == 128_000


@pytest.mark.parametrize(
    "text", ["", "8 kk", "-3", "0", "101%", "1.5", "8.0001k", "per class", "10 percent", "1.5 per class"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(BadInput, match="expected a number of images like 8000"):
        check_subset(text)


def test_classes_that_are_too_small_are_refused():
    with pytest.raises(BadInput, match="class 0 has 95 images, expected at least 96"):
        stratified(LABELS, "96 per class")
    with pytest.raises(BadInput, match="class 0 has 95 images"):
        stratified(LABELS, "1k")
    with pytest.raises(BadInput, match="none of 995 images"):
        stratified(LABELS, "0.01%")
