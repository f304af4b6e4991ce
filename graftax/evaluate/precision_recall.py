"""Precision and recall of samples by nearest neighbours (Kynkäänniemi et al., arXiv 1904.06991).

Around every point of a set lies a ball that reaches to its k-th nearest neighbour in the set. Precision is the share of
samples inside a ball of the reference, recall the share of the reference inside a ball of the samples. As in ADM's
evaluator: k = 3, squared distances, borders count as inside.

Distances are computed on the device between blocks of `BLOCK` rows, so memory there does not grow with the sets. They are
in float32; ADM's evaluator computes them in float16 where none overflows (on made-up features of Inception's size and
range that moved precision and recall by 0.003).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from graftax.errors import BadInput, NonFinite
from graftax.progress import Progress

NEIGHBOURS = 3
BLOCK = 4096


def precision_recall(
    reference: np.ndarray, samples: np.ndarray, k: int = NEIGHBOURS, *, block: int = BLOCK, show: bool = False
) -> tuple[float, float]:
    """(precision, recall), each in [0, 1], of features `samples` (m, d) against `reference` (n, d).

    Raises `BadInput` on other shapes or sets of k or fewer points, `NonFinite` on features that are not finite.
    """
    for name, features in (("reference", reference), ("samples", samples)):
        if features.ndim != 2 or features.shape[1] != reference.shape[1] or len(features) <= k:
            raise BadInput(
                f"precision and recall: {name} {features.shape}, expected more than {k} rows of {reference.shape[1:]}"
            )
        if not np.isfinite(features).all():
            raise NonFinite(f"precision and recall: {name} has features that are not finite")
    a, b = (np.asarray(x, np.float32) for x in (reference, samples))
    rows = [-(-len(x) // block) for x in (a, b)]
    with Progress(rows[0] + 2 * rows[1], "precision, recall", unit="block", show=show) as progress:
        radii = [_radii(x, k, block, progress) for x in (a, b)]
        inside_a, inside_b = _cross(a, radii[0], b, radii[1], block, progress)
    return float(inside_b.mean()), float(inside_a.mean())


def _radii(x: np.ndarray, k: int, block: int, progress: Progress) -> np.ndarray:
    """Squared distance (n,) from each row to its k-th nearest other row: the row itself comes before, at distance 0."""
    parts = []
    for rows, _ in _blocks(x, block):
        best = jnp.full((len(rows), k + 1), jnp.inf)
        for columns, _ in _blocks(x, block):
            best = _nearest(best, rows, columns)
        parts.append(np.asarray(best[:, k]))
        progress.advance()
    return np.concatenate(parts)


def _cross(
    a: np.ndarray, radii_a: np.ndarray, b: np.ndarray, radii_b: np.ndarray, block: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of `a` lie in a ball of `b`, and which of `b` in one of `a`: bool (n,), (m,)."""
    inside_a, inside_b = np.zeros(len(a), bool), np.zeros(len(b), bool)
    for columns, at_b in _blocks(b, block):
        for rows, at_a in _blocks(a, block):
            found_a, found_b = _inside(rows, radii_a[at_a], columns, radii_b[at_b])
            inside_a[at_a] |= np.asarray(found_a)
            inside_b[at_b] |= np.asarray(found_b)
        progress.advance()
    return inside_a, inside_b


def _blocks(x: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, slice]]:
    for start in range(0, len(x), size):
        yield x[start : start + size], slice(start, start + size)


def _distances(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Squared distances (r, c) of rows (r, d) to columns (c, d)."""
    squares = jnp.square(rows).sum(1)[:, None] + jnp.square(columns).sum(1)
    return jnp.maximum(squares - 2 * jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST), 0)


@functools.partial(jax.jit, donate_argnums=0)
def _nearest(best: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """`best` (r, k + 1), the least distances so far, ascending, with those of more columns taken in."""
    found, _ = jax.lax.top_k(-jnp.concatenate([best, _distances(rows, columns)], 1), best.shape[1])
    return -found


@jax.jit
def _inside(rows: jax.Array, radii_r: jax.Array, columns: jax.Array, radii_c: jax.Array) -> tuple[jax.Array, jax.Array]:
    distances = _distances(rows, columns)
    return (distances <= radii_c).any(1), (distances <= radii_r[:, None]).any(0)
