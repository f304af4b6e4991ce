"""Linear layers of low rank, and the best one for given data."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
from jax.typing import DTypeLike

from graftax.ops.base import uniform_fan_in


class Factored(nn.Module):
    """(x D) U + b with D (d, rank), PyTorch's default initialisation: (..., d) -> (..., features).

    Attributes:
        features: numbers that come out.
        rank: width between the two factors.
        dtype: matmul type.
    """

    features: int
    rank: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in, fan_out = uniform_fan_in(x.shape[-1]), uniform_fan_in(self.rank)
        down = nn.Dense(self.rank, use_bias=False, dtype=self.dtype, kernel_init=fan_in, name="down")(x)
        return nn.Dense(self.features, dtype=self.dtype, kernel_init=fan_out, bias_init=fan_out, name="up")(down)


def square_root(covariance: np.ndarray) -> np.ndarray:
    """R (d, d) with R^T R = covariance (d, d): variances of R W are those that x has along W."""
    values, vectors = np.linalg.eigh(covariance)
    return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T


def reduced_rank(
    kernel: np.ndarray, bias: np.ndarray, mean: np.ndarray, root: np.ndarray, rank: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The map of this rank that differs least from x -> x kernel + bias, in the mean square over x.

    kernel (d, p), bias (p,), mean (d,) of x and `square_root` (d, d) of its covariance -> factors (d, rank) and (rank, p),
    and bias (p,). Of the least-squares map of x to targets, that is the best map of this rank to them: reduced-rank
    regression (Izenman 1975).
    """
    # W R R^T, R the largest right singular vectors of W where x is white. Not the other form with the covariance's
    # inverse, which explodes once training moves x to where it never was.
    white = root @ kernel  # (d, p)
    _, left = np.linalg.eigh(white @ white.T)
    right, _ = np.linalg.qr(white.T @ left[:, ::-1][:, :rank])  # (p, rank)
    down, up = kernel @ right, right.T
    scale = np.sqrt(np.linalg.norm(down, axis=0))  # both factors of a component of one length train alike
    safe = np.where(scale > 0, scale, 1)
    return down / safe, safe[:, None] * up, bias + mean @ (kernel - down @ up)
