import numpy as np
import pytest

from graftax.errors import BadInput, NonFinite
from graftax.evaluate.inception_score import InceptionScore


def by_definition(logits, split):
    """exp of the mean Kullback-Leibler divergence, per part, averaged over parts."""
    p = np.exp(logits.astype(np.longdouble))
    p /= p.sum(1, keepdims=True)
    parts = [p[i : i + split] for i in range(0, len(p), split)]
    return float(np.mean([np.exp((part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()) for part in parts]))


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("split", [10, 25, 100])
def test_score_is_the_definition_in_any_chunks(chunk, split):
    logits = 3 * np.random.default_rng(0).standard_normal((45, 6), np.float32)
    score = InceptionScore(split)
    for i in range(0, len(logits), chunk):
        score.add(logits[i : i + chunk])
    assert score.result() == pytest.approx(by_definition(logits, split), rel=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("bare_torch_fidelity")
def test_score_agrees_with_torchmetrics():
    torch = pytest.importorskip("torch")
    metric = pytest.importorskip("torchmetrics.image.inception").InceptionScore(feature=torch.nn.Flatten(), splits=1)
    logits = 3 * np.random.default_rng(0).standard_normal((50, 12), np.float32)
    metric.update(torch.from_numpy(logits.reshape(50, 3, 2, 2)))
    score = InceptionScore(50)
    score.add(logits)
    assert score.result() == pytest.approx(float(metric.compute()[0]), rel=1e-5)


def test_bounds():
    sure, unsure = 1e4 * np.eye(8)[np.arange(64) % 8], np.zeros((64, 8))
    for logits, expected in ((sure, 8), (unsure, 1)):
        score = InceptionScore()
        score.add(logits)
        assert score.result() == pytest.approx(expected)


def test_refusals():
    with pytest.raises(BadInput, match="0 images"):
        InceptionScore().result()
    with pytest.raises(BadInput, match=r"shape \(3,\)"):
        InceptionScore().add(np.zeros(3))
    with pytest.raises(NonFinite):
        InceptionScore().add(np.array([[0.0, np.inf]]))
