"""The Inception score (Salimans et al., arXiv 1606.03498): exp of the mean divergence of p(class | image) from p(class)."""

from __future__ import annotations

import numpy as np

from graftax.errors import BadInput, NonFinite

SPLIT = 5000
"""Images over which one score is taken, as ADM's evaluator does; 50,000 images give ten, and their mean is reported."""


class InceptionScore:
    """Streaming Inception score of class logits (n, c), in float64: c numbers, however many images.

    Consecutive `split` images make one score exp(mean_i KL(p_i | mean_i p_i)); a shorter rest makes one too, as in ADM's
    evaluator. The order of images matters.
    """

    def __init__(self, split: int = SPLIT) -> None:
        self.split = split
        self.scores: list[float] = []
        self._start()

    def _start(self) -> None:
        self._count, self._negentropy, self._mean = 0, 0.0, np.zeros(())

    def add(self, logits: np.ndarray) -> None:
        """Take in logits (n, c). Raises `BadInput` on other shapes, `NonFinite` on NaN or infinity."""
        rows = np.asarray(logits, np.float64)
        if rows.ndim != 2:
            raise BadInput(f"logits: shape {rows.shape}, expected (n, c)")
        if not np.isfinite(rows).all():
            raise NonFinite("logits: not finite")
        while len(rows):
            part, rows = np.split(rows, [self.split - self._count])
            self._take(part)
            if self._count == self.split:
                self._finish()

    def _take(self, logits: np.ndarray) -> None:
        shifted = logits - logits.max(1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))  # (n, c)
        p = np.exp(log_p)
        self._negentropy += float((p * log_p).sum())
        self._mean = self._mean + p.sum(0)
        self._count += len(p)

    def _finish(self) -> None:
        mean = self._mean / self._count
        known = mean[mean > 0]
        self.scores.append(float(np.exp(self._negentropy / self._count - (known * np.log(known)).sum())))
        self._start()

    def result(self) -> float:
        """The mean of the parts' scores, once all images are in. Raises `BadInput` without images."""
        if self._count:
            self._finish()
        if not self.scores:
            raise BadInput("Inception score of 0 images: expected at least 1")
        return float(np.mean(self.scores))
