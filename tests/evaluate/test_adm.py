"""The suite on features small enough for seconds: a stand-in for Inception, everything after it as it is."""

import numpy as np
import pytest
import scipy.linalg

from graftax.errors import BadInput
from graftax.evaluate import adm
from graftax.evaluate.adm import METRICS, Network, adm_scores, open_reference
from graftax.evaluate.image_file import open_images
from graftax.evaluate.inception_score import InceptionScore
from graftax.evaluate.precision_recall import precision_recall
from graftax.nets.inception import InceptionFeatures

RNG = np.random.default_rng(0)
WEIGHTS = {"fc": RNG.normal(0, 0.02, (8, 5)).astype(np.float32), "trunk": np.eye(27, 15)}
NETWORK = Network(WEIGHTS, "net.pth", "abcdef" * 10)


def small_features(params, images):
    """First 8 projected pixels as pool, 7 others as spatial features, logits from the pool."""
    x = images.reshape(len(images), -1).astype(np.float32) @ params["trunk"]
    return InceptionFeatures(x[:, :8], x[:, 8:], x[:, :8] @ params["fc"] if "fc" in params else None)


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    monkeypatch.setattr(adm, "features", small_features)
    sizes = {"FID": 8, "sFID": 7}
    moments = {name: (space, sizes[name], *names) for name, (space, _, *names) in adm.MOMENTS.items()}
    monkeypatch.setattr(adm, "MOMENTS", moments)


@pytest.fixture
def files(tmp_path):
    """Samples, reference images, and the features of both."""
    sets = {
        "samples": RNG.integers(0, 200, (60, 3, 3, 3)).astype(np.uint8),
        "reference": RNG.integers(30, 256, (50, 3, 3, 3)).astype(np.uint8),
    }
    for name, images in sets.items():
        np.savez(tmp_path / f"{name}.npz", images)
    return tmp_path, {name: small_features(NETWORK.params, images) for name, images in sets.items()}


def samples_of(folder, name="samples"):
    found = open_images(folder / f"{name}.npz")
    assert found is not None
    return found


def frechet(a, b):
    """As ADM's evaluator writes it, with the matrix square root."""
    covariances = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)


@pytest.mark.parametrize("batch", [7, 64])
def test_all_metrics_are_their_definitions(files, batch):
    folder, features = files
    found = adm_scores(NETWORK, samples_of(folder), open_reference(folder / "reference.npz"), batch=batch)
    ours, theirs = features["samples"], features["reference"]
    score = InceptionScore()
    score.add(ours.logits)
    expected = {
        "IS": score.result(), "FID": frechet(ours.pool, theirs.pool), "sFID": frechet(ours.spatial, theirs.spatial),
        **dict(zip(("precision", "recall"), precision_recall(theirs.pool, ours.pool), strict=True)),
    }  # fmt: skip
    assert tuple(found.scores) == METRICS
    assert found.scores == pytest.approx(expected, rel=1e-4)
    assert (found.samples, found.reference, found.inception) == (60, "reference.npz", "net.pth")


def test_precomputed_moments_stand_for_the_whole_set(files):
    """ADM's references: moments of all images, and some images for precision and recall."""
    folder, features = files
    theirs = features["reference"]
    moments = {
        "mu": theirs.pool.mean(0) + 5, "sigma": np.cov(theirs.pool.T), "mu_s": theirs.spatial.mean(0),
        "sigma_s": np.cov(theirs.spatial.T),
    }  # fmt: skip
    whole = adm_scores(NETWORK, samples_of(folder), open_reference(folder / "reference.npz")).scores
    part = np.load(folder / "reference.npz")["arr_0"][:8]  # too few for moments of their own
    np.savez(folder / "virtual.npz", part, **moments)
    found = adm_scores(NETWORK, samples_of(folder), open_reference(folder / "virtual.npz")).scores
    gap = features["samples"].pool.mean(0) - theirs.pool.mean(0)
    moved = whole["FID"] - gap @ gap + (gap - 5) @ (gap - 5)
    assert found["FID"] == pytest.approx(moved, rel=1e-4)
    assert found["sFID"] == pytest.approx(whole["sFID"], rel=1e-6)
    assert found["recall"] == precision_recall(theirs.pool[:8], features["samples"].pool)[1]
    np.savez(folder / "moments.npz", **moments)
    alone = adm_scores(NETWORK, samples_of(folder), open_reference(folder / "moments.npz"), ("FID", "sFID")).scores
    assert alone == {name: found[name] for name in ("FID", "sFID")}
    with pytest.raises(BadInput, match=r"no images \(arr_0\)"):
        adm_scores(NETWORK, samples_of(folder), open_reference(folder / "moments.npz"))


def test_a_set_against_itself(files):
    folder, features = files
    found = adm_scores(NETWORK, samples_of(folder), open_reference(folder / "samples.npz")).scores
    spread = np.trace(np.cov(features["samples"].pool.T))
    assert max(found["FID"], found["sFID"]) < 1e-9 * spread
    assert (found["precision"], found["recall"]) == (1, 1)


def test_only_what_was_asked_for_is_computed_and_kept(files, monkeypatch):
    folder, _ = files
    monkeypatch.setattr(adm, "precision_recall", None)
    found = adm_scores(NETWORK, samples_of(folder), open_reference(folder / "reference.npz"), ("sFID", "IS"))
    assert tuple(found.scores) == ("IS", "sFID")
    assert "mixed_6/conv" in str(found)
    assert "pool_3" not in str(found)


def test_refusals_come_before_any_work(files, monkeypatch):
    folder, _ = files
    monkeypatch.setattr(adm, "extract", None)
    reference = open_reference(folder / "reference.npz")

    def refused(match, network=NETWORK, samples="samples", reference=reference, metrics=METRICS):
        with pytest.raises(BadInput, match=match):
            adm_scores(network, samples_of(folder, samples), reference, metrics)

    refused("metrics FID, KID", metrics=("FID", "KID"))
    refused("metrics none", metrics=())
    refused("net.pth: no classifier", network=Network({}, "net.pth", ""))
    np.savez(folder / "few.npz", np.zeros((8, 3, 3, 3), np.uint8))
    refused(r"few.npz: 8 images, FID \(InceptionV3 2015-12-05, pool_3\) expects more than 8", samples="few")
    refused(r"few.npz: 8 images, FID", reference=open_reference(folder / "few.npz"))
    np.savez(folder / "three.npz", np.zeros((3, 3, 3, 3), np.uint8))
    refused(r"three.npz: 3 images, precision and recall expect more than 3", reference=open_reference(folder / "three.npz"))
    np.savez(folder / "large.npz", np.zeros((60, 4, 4, 3), np.uint8))
    refused(r"images are \(3, 3, 3\), the samples \(4, 4, 3\)", samples="large")
    np.savez(folder / "other.npz", mu=np.zeros(3), sigma=np.eye(3), mu_s=np.zeros(7), sigma_s=np.eye(7))
    with pytest.raises(BadInput, match=r"mu has 3 features, expected 8 \(InceptionV3 2015-12-05, pool_3\)"):
        open_reference(folder / "other.npz")
    np.savez(folder / "neither.npz", x=np.zeros(3))
    with pytest.raises(BadInput, match="neither arr_0 nor mu"):
        open_reference(folder / "neither.npz")
