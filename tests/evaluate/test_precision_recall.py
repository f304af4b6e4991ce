import numpy as np
import pytest

from graftax.errors import BadInput, NonFinite
from graftax.evaluate.precision_recall import precision_recall


def by_definition(reference, samples, k):
    """Kynkäänniemi et al., eqs. 1 and 2, pair by pair in float64."""

    def inside(points, centres):
        hits = np.zeros(len(points), bool)
        for i, centre in enumerate(centres):
            others = np.delete(centres, i, 0)
            radius = np.sort(((others - centre) ** 2).sum(1))[k - 1]
            hits |= ((points - centre) ** 2).sum(1) <= radius
        return hits.mean()

    reference, samples = reference.astype(np.float64), samples.astype(np.float64)
    return inside(samples, reference), inside(reference, samples)


@pytest.mark.parametrize("block", [16, 4096])
@pytest.mark.parametrize("k", [1, 3])
def test_agrees_with_the_definition_in_any_blocks(k, block):
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(40, 5)).astype(np.float32)
    samples = rng.normal(0.4, 0.8, (33, 5)).astype(np.float32)
    expected = by_definition(reference, samples, k)
    assert 0.1 < min(expected) < max(expected) < 0.95
    assert precision_recall(reference, samples, k, block=block) == pytest.approx(expected)


def test_a_set_against_itself_and_against_one_far_away():
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)


def test_collapse_is_precise_and_forgets():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(200, 3)).astype(np.float32)
    precision, recall = precision_recall(reference, (0.01 * rng.normal(size=(50, 3))).astype(np.float32))
    assert precision == 1
    assert recall < 0.05


def test_refusals():
    x = np.zeros((5, 2), np.float32)
    with pytest.raises(BadInput, match=r"samples \(3, 2\), expected more than 3 rows"):
        precision_recall(x, x[:3])
    with pytest.raises(BadInput, match=r"samples \(5, 1\)"):
        precision_recall(x, x[:, :1])
    with pytest.raises(NonFinite, match="reference"):
        precision_recall(x + np.nan, x)
