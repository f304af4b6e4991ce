"""Fréchet distance between feature sets, from streamed moments in float64.

For Gaussians with means m and covariances S the squared 2-Wasserstein distance is (Dowson and Landau 1982; Heusel et al.,
arXiv 1706.08500, eq. 6)

    d = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^(1/2) S2 S1^(1/2))^(1/2),

where the last matrix is symmetric, so two symmetric eigendecompositions suffice and nothing turns complex. A distance has a
meaning only within one feature space, so moments carry its name and those of two spaces are not compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graftax.errors import BadInput, NonFinite

UNNAMED = "unnamed features"


@dataclass(frozen=True)
class Gaussian:
    """Moments of a feature set.

    Attributes:
        mean: (d,) float64.
        covariance: (d, d) float64, unbiased.
        count: features behind them, None where a file does not tell.
        space: name of the feature space.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None
    space: str = UNNAMED


class Moments:
    """Streaming mean and covariance of features (n, d), added chunk by chunk in float64: (d, d) numbers, however large n.

    Chunks, and the streams of several hosts, are joined with the pairwise update of Chan, Golub and LeVeque (1979), which
    loses no digits where the mean is large beside the spread.
    """

    def __init__(self, dims: int, space: str = UNNAMED) -> None:
        self.space = space
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
        centre = chunk.mean(0)
        self._join(len(chunk), centre, chunk - centre)

    def merge(self, other: Moments) -> None:
        """Take in all that another stream has seen. Raises `BadInput` where its features are others."""
        if len(other.mean) != len(self.mean) or other.space != self.space:
            raise BadInput(f"moments: {other.space} ({len(other.mean)}), expected {self.space} ({len(self.mean)})")
        if other.count:
            self._join(other.count, other.mean, np.zeros((0, len(self.mean))))
            self._scatter += other._scatter

    def _join(self, count: int, centre: np.ndarray, deviations: np.ndarray) -> None:
        """Add `count` samples around `centre` (d,), with those of their `deviations` (m, d) that are not added elsewhere."""
        total = self.count + count
        gap = centre - self.mean
        # The distance of the two centres is one more deviation: one product and one sum over the (d, d) matrix.
        rows = np.concatenate([deviations, gap[None] * np.sqrt(self.count * count / total)])
        self._scatter += rows.T @ rows
        self.mean = self.mean + gap * (count / total)
        self.count = total

    def packed(self) -> np.ndarray:
        """All of the state as float64 (1 + d + d * d,), to be sent to another host; `unpacked` reads it."""
        return np.concatenate([[self.count], self.mean, self._scatter.ravel()])

    @classmethod
    def unpacked(cls, packed: np.ndarray, dims: int, space: str = UNNAMED) -> Moments:
        """The stream that `packed` describes."""
        stream = cls(dims, space)
        stream.count = int(packed[0])
        stream.mean, stream._scatter = packed[1 : 1 + dims].copy(), packed[1 + dims :].reshape(dims, dims).copy()
        return stream

    def result(self) -> Gaussian:
        """The moments so far. Raises `BadInput` below two samples, which have no covariance."""
        if self.count < 2:
            raise BadInput(f"moments of {self.count} samples: expected at least 2")
        return Gaussian(self.mean.copy(), self._scatter / (self.count - 1), self.count, self.space)


def moments(features: np.ndarray, space: str = UNNAMED) -> Gaussian:
    """Moments of features (n, d) of the feature space `space`, held in one array."""
    if np.ndim(features) != 2:
        raise BadInput(f"features: shape {np.shape(features)}, expected (n, d)")
    stream = Moments(np.shape(features)[1], space)
    stream.add(features)
    return stream.result()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet distance of two Gaussians in squared feature units, at least 0.

    Raises `BadInput` where the feature spaces differ, or a side has no more samples than dimensions: its covariance is then
    singular and the distance mostly measures that.
    """
    if a.space != b.space:
        raise BadInput(f"Fréchet distance: {a.space!r} against {b.space!r}, expected one feature space")
    dims = len(a.mean)
    if len(b.mean) != dims:
        raise BadInput(f"Fréchet distance: {dims} and {len(b.mean)} features, expected equally many")
    for side in (a, b):
        if side.count is not None and side.count <= dims:
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
