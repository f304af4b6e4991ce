"""Linear least squares in one pass over the data: sums of products are kept, the rows are not."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

RIDGE = 1e-6


class Sums(NamedTuple):
    """What min_{W, b} ||X W + b - Y||^2 needs to know of the rows seen so far.

    A pytree, so it stacks over sites; gram and cross split over devices like parameters.

    Attributes:
        gram: (p, p) = X^T X.
        cross: (p, q) = X^T Y.
        total_x: (p,) sum of the rows of X.
        total_y: (q,) sum of the rows of Y.
        rows: (), their number.
    """

    gram: jax.Array
    cross: jax.Array
    total_x: jax.Array
    total_y: jax.Array
    rows: jax.Array


def zeros(features: int, outputs: int) -> Sums:
    """Sums over no rows, for X (rows, features) and Y (rows, outputs)."""
    shapes = (features, features), (features, outputs), (features,), (outputs,), ()
    return Sums(*map(jnp.zeros, shapes))


def accumulate(sums: Sums, x: jax.Array, y: jax.Array) -> Sums:
    """`sums` with the rows of x (..., p) and y (..., q) added; may be jitted, and vmapped over sites."""
    x, y = (a.reshape(-1, a.shape[-1]).astype(jnp.float32) for a in (x, y))
    with jax.default_matmul_precision("highest"):  # a TPU's default would round the factors to bfloat16
        new = Sums(x.T @ x, x.T @ y, x.sum(0), y.sum(0), jnp.float32(len(x)))
    return jax.tree.map(jnp.add, sums, new)


def moments(sums: Sums) -> tuple[np.ndarray, np.ndarray]:
    """Mean (p,) and covariance (p, p) of the rows of X, float64."""
    mean = np.asarray(sums.total_x, np.float64) / float(sums.rows)
    return mean, np.asarray(sums.gram, np.float64) / float(sums.rows) - np.outer(mean, mean)


def solve(sums: Sums, ridge: float = RIDGE, intercept: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (p, q) and bias (q) of the least-squares map, float32, solved on the host in float64.

    Ridge regression on features of mean 0 and unit variance, so `ridge` is a fraction of each feature's own variance and
    the bias is not shrunk; features that never vary get weight 0. Without `intercept` the bias is held at 0 and
    features are scaled to unit power, not centred.
    """
    gram, cross, total_x, total_y, rows = (np.asarray(a, np.float64) for a in sums)
    mean_x, mean_y = intercept * total_x / rows, intercept * total_y / rows
    cov = gram / rows - np.outer(mean_x, mean_x)
    cov_xy = cross / rows - np.outer(mean_x, mean_y)
    power = np.diag(gram) / rows
    varies = np.diag(cov) > 1e-7 * power  # below that it is rounding of the float32 sums
    scale = np.where(varies, 1 / np.sqrt(np.where(varies, np.diag(cov), 1)), 0)
    system = cov * scale[:, None] * scale + np.diag(np.where(varies, ridge, 1))
    kernel = scale[:, None] * np.linalg.solve(system, cov_xy * scale[:, None])
    return kernel.astype(np.float32), (mean_y - mean_x @ kernel).astype(np.float32)
