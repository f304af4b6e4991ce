import tracemalloc

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


@pytest.mark.usefixtures("bare_torch_fidelity")
def test_distance_agrees_with_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    metric_type = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance
    network = torch.nn.Flatten()
    network.num_features = 48
    metric = metric_type(feature=network, input_img_size=(3, 4, 4)).set_dtype(torch.float64)
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(48, 48))
    real, fake = (np.float32(rng.gamma(shape, 1, (400, 48)) @ mix) for shape in (2.0, 2.5))
    for features, is_real in ((real, True), (fake, False)):
        metric.update(torch.from_numpy(features.reshape(-1, 3, 4, 4)), real=is_real)
    expected = float(metric.compute())
    assert frechet_distance(moments(fake), moments(real)) == pytest.approx(expected, rel=1e-6)


def test_streams_of_several_hosts_merge_to_that_of_one() -> None:
    features = np.random.default_rng(0).normal(1e4, 0.1, (300, 5))
    streams = [Moments(5) for _ in range(3)]
    for stream, part in zip(streams, np.split(features, [20, 20]), strict=True):
        stream.add(part)
    whole = streams[1]  # has seen nothing
    for stream in (streams[0], streams[2]):
        whole.merge(stream)
    assert whole.result().count == 300
    np.testing.assert_allclose(whole.result().mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.result().covariance, np.cov(features.T), rtol=1e-6, atol=1e-9)
    with pytest.raises(BadInput, match=r"other \(5\), expected unnamed features \(5\)"):
        whole.merge(Moments(5, "other"))


def test_feature_spaces_are_not_mixed() -> None:
    features = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(BadInput, match="'DINOv2' against 'InceptionV3', expected one feature space"):
        frechet_distance(moments(features, "DINOv2"), moments(features, "InceptionV3"))


def test_a_reference_may_hide_its_count() -> None:
    a = random_gaussian(4, 0)
    assert frechet_distance(a, Gaussian(a.mean, a.covariance, None)) < 1e-9


@pytest.mark.parametrize(
    ("count", "dims"), [(20_000, 64), pytest.param(50_000, 2048, marks=pytest.mark.slow)], ids=["small", "50k"]
)
def test_memory_does_not_grow_with_the_number_of_images(count: int, dims: int) -> None:
    """All features at once would take count x dims x 8 bytes: 10 and 819 MB."""
    rng, stream = np.random.default_rng(0), Moments(dims)
    tracemalloc.start()
    for _ in range(count // 500):
        stream.add(rng.standard_normal((500, dims), np.float32))
    found = stream.result()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.count == count
    assert peak < 8 * (4 * dims * dims + 4 * 500 * dims)
    np.testing.assert_allclose(np.diag(found.covariance), 1, atol=0.06)
