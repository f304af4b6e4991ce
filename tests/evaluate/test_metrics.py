import numpy as np
import pytest
import scipy.linalg

from graftax.errors import BadInput, NonFinite
from graftax.evaluate.metrics import Gaussian, Moments, class_accuracy, frechet_distance, moments


def random_gaussian(dims: int, seed: int, rank: int | None = None) -> Gaussian:
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(dims, rank or 2 * dims))
    return Gaussian(rng.normal(size=dims), factor @ factor.T / dims, 10_000)


@pytest.mark.parametrize("dims", [1, 3, 64])
def test_distance_agrees_with_the_matrix_square_root_of_scipy(dims: int) -> None:
    a, b = random_gaussian(dims, 0), random_gaussian(dims, 1)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-9)
    np.testing.assert_allclose(frechet_distance(b, a), expected, rtol=1e-9)


def test_commuting_covariances_have_a_closed_form() -> None:
    a = Gaussian(np.array([1.0, 2.0]), np.diag([4.0, 9.0]), 100)
    b = Gaussian(np.array([0.0, 0.0]), np.diag([1.0, 16.0]), 100)
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (2 - 1) ** 2 + (3 - 4) ** 2)


def test_distance_to_itself_is_zero_even_where_the_covariance_is_singular() -> None:
    for rank in (None, 2):
        a = random_gaussian(8, 3, rank)
        assert 0 <= frechet_distance(a, a) < 1e-6 * np.trace(a.covariance)


def test_streamed_moments_equal_those_of_the_whole() -> None:
    features = np.random.default_rng(0).normal(1e4, 0.1, (500, 5))  # large mean: naive sums of squares would fail
    stream = Moments(5)
    for start, stop in ((0, 1), (1, 1), (1, 200), (200, 500)):
        stream.add(features[start:stop])
    got, whole = stream.result(), moments(features)
    assert got.count == whole.count == 500
    np.testing.assert_allclose(got.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(got.covariance, np.cov(features.T), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(whole.covariance, np.cov(features.T), rtol=1e-6, atol=1e-9)


def test_distance_of_samples_approaches_that_of_their_law() -> None:
    rng = np.random.default_rng(0)
    x = moments(rng.normal(0, 1, (20_000, 4)))
    y = moments(rng.normal(1, 2, (20_000, 4)))
    assert frechet_distance(x, y) == pytest.approx(4 * (1 + 1), rel=0.03)


def test_too_few_or_mismatched_samples_are_refused() -> None:
    rng = np.random.default_rng(0)
    few, many, other = (moments(rng.normal(size=s)) for s in ((8, 8), (50, 8), (50, 7)))
    with pytest.raises(BadInput, match="8 samples of 8 features, expected at least 9"):
        frechet_distance(many, few)
    with pytest.raises(BadInput, match="8 and 7 features"):
        frechet_distance(many, other)
    with pytest.raises(BadInput, match="moments of 1 samples"):
        moments(np.zeros((1, 3)))
    with pytest.raises(BadInput, match=r"shape \(4, 2\), expected \(n, 3\)"):
        Moments(3).add(np.zeros((4, 2)))
    with pytest.raises(BadInput, match=r"shape \(4,\), expected \(n, d\)"):
        moments(np.zeros(4))


def test_non_finite_features_are_refused() -> None:
    features = np.zeros((5, 2))
    features[3] = np.nan
    with pytest.raises(NonFinite, match="1 of 5 rows"):
        moments(features)


def test_class_accuracy_counts_hits() -> None:
    logits = np.eye(4)[[0, 1, 2, 2]]
    assert class_accuracy(logits, np.array([0, 1, 2, 3])) == 0.75
    with pytest.raises(BadInput, match="class accuracy"):
        class_accuracy(logits, np.zeros(3, int))
