"""Fréchet distance between feature sets, from streamed moments in float64.

For Gaussians with means m and covariances S the squared 2-Wasserstein distance is (Dowson and Landau 1982; Heusel et al.,
arXiv 1706.08500, eq. 6)

    d = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^(1/2) S2 S1^(1/2))^(1/2),

where the last matrix is symmetric, so two symmetric eigendecompositions suffice and nothing turns complex.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graftax.errors import BadInput, NonFinite


@dataclass(frozen=True)
class Gaussian:
    """Moments of a feature set: `mean` (d,), unbiased `covariance` (d, d), both float64, and the `count` behind them."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int


class Moments:
    """Streaming mean and covariance of features (n, d), added chunk by chunk in float64.

    Chunks are joined with the pairwise update of Chan, Golub and LeVeque (1979), which loses no digits where the mean is
    large beside the spread.
    """

    def __init__(self, dims: int) -> None:
        self.count = 0
        self.mean = np.zeros(dims)
        self._scatter = np.zeros((dims, dims))  # sum of outer products of deviations from the mean

    def add(self, features: np.ndarray) -> None:
        """Take in features (n, d), any float type. Raises `BadInput` on other shapes, `NonFinite` on NaN or inf."""
        chunk = np.asarray(features, np.float64)
        if chunk.ndim != 2 or chunk.shape[1] != len(self.mean):
            raise BadInput(f"features: shape {chunk.shape}, expected (n, {len(self.mean)})")
        if not np.isfinite(chunk).all():
            raise NonFinite(f"features: {int((~np.isfinite(chunk)).any(1).sum())} of {len(chunk)} rows are not finite")
        if not len(chunk):
            return
        total = self.count + len(chunk)
        centre = chunk.mean(0)
        gap = centre - self.mean
        deviations = chunk - centre  # (n, d)
        self._scatter += deviations.T @ deviations + np.outer(gap, gap) * (self.count * len(chunk) / total)
        self.mean = self.mean + gap * (len(chunk) / total)
        self.count = total

    def result(self) -> Gaussian:
        """The moments so far. Raises `BadInput` below two samples, which have no covariance."""
        if self.count < 2:
            raise BadInput(f"moments of {self.count} samples: expected at least 2")
        return Gaussian(self.mean.copy(), self._scatter / (self.count - 1), self.count)


def moments(features: np.ndarray) -> Gaussian:
    """Moments of features (n, d) held in one array."""
    if np.ndim(features) != 2:
        raise BadInput(f"features: shape {np.shape(features)}, expected (n, d)")
    stream = Moments(np.shape(features)[1])
    stream.add(features)
    return stream.result()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet distance of two Gaussians in squared feature units, at least 0.

    Raises `BadInput` where the dimensions differ, or a side has no more samples than dimensions: its covariance is then
    singular and the distance mostly measures that.
    """
    dims = len(a.mean)
    if len(b.mean) != dims:
        raise BadInput(f"Fréchet distance: {dims} and {len(b.mean)} features, expected equally many")
    for side in (a, b):
        if side.count <= dims:
            raise BadInput(f"Fréchet distance: {side.count} samples of {dims} features, expected at least {dims + 1}")
    root = _root(a.covariance)
    cross = np.linalg.eigvalsh(root @ b.covariance @ root)  # (d,)
    trace_root = np.sqrt(np.clip(cross, 0, None)).sum()
    gap = a.mean - b.mean
    distance = gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace_root
    return max(float(distance), 0.0)


def _root(matrix: np.ndarray) -> np.ndarray:
    """Symmetric square root of a positive semidefinite matrix; eigenvalues that rounding made negative count as 0."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def class_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of samples whose largest of logits (n, classes) is at the label (n,) they were drawn for."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise BadInput(f"class accuracy: logits {logits.shape}, labels {labels.shape}; expected (n >= 1, classes) and (n,)")
    return float((logits.argmax(-1) == labels).mean())
