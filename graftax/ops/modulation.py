"""Modulation: from the conditioning vector to the shifts, scales and gates of a block (adaLN, arXiv 2212.09748, Section
3.2).

Each operator here is an affine map of u = silu(vec), so any of them can be fitted in closed form to any other from the mean
and covariance of u over times and classes alone; no image is needed (`Modulation.fit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

from graftax.errors import BadInput
from graftax.ops.base import FITTED, IN_HIDDEN, KEPT, Axes, Cost, Operator, Overrides, Params, Shapes, TorchKey, linear_keys
from graftax.ops.low_rank import reduced_rank, square_root
from graftax.spec import OpSpec, Option, Sizes

Affine = tuple[np.ndarray, np.ndarray]
"""Kernel (d, parts d) and bias (parts d,) of a map of u, float64."""


@dataclass(frozen=True, eq=False)
class Activated:
    """What is known of u = silu(vec) over the conditions that a model meets.

    Attributes:
        mean: (d,) float64.
        covariance: (d, d) float64.
    """

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, vec: ArrayLike) -> Activated:
        """From samples of the conditioning vector, (s, d)."""
        vec = np.asarray(vec, np.float64)
        u = vec / (1 + np.exp(-vec))
        mean = u.mean(0)
        return cls(mean, (u - mean).T @ (u - mean) / len(u))

    def power(self, affine: Affine) -> np.ndarray:
        """Mean square of every output of an affine map of u: (parts d,)."""
        kernel, bias = affine
        return np.einsum("ij,ij->j", self.covariance @ kernel, kernel) + (self.mean @ kernel + bias) ** 2

    def error(self, fitted: Affine, wanted: Affine) -> float:
        """Root of the mean squared difference of two maps of u, over that of `wanted`."""
        difference = fitted[0] - wanted[0], fitted[1] - wanted[1]
        return float(np.sqrt(self.power(difference).sum() / self.power(wanted).sum()))


class SiluLinear(nn.Module):
    """W silu(vec) + b, at zero at first as in adaLN-zero: vec (..., d) -> (..., features).

    Attributes:
        features: numbers that come out.
        dtype: matmul type.
        bias: whether there is a b.
    """

    features: int
    dtype: DTypeLike | None = None
    bias: bool = True

    @nn.compact
    def __call__(self, vec: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.zeros, (vec.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32) if self.bias else None
        u, kernel, bias = promote_dtype(nn.silu(vec), kernel, bias, dtype=self.dtype)
        return u @ kernel if bias is None else u @ kernel + bias


def linear_cost(width: int, features: int, vecs: int = 1) -> Cost:
    """Of a `SiluLinear` on `vecs` vectors of `width`."""
    return Cost(width * features + features, 2 * vecs * width * features)


LOW_RANK_KEYS = (TorchKey("down/kernel", "1.weight", "linear"), TorchKey("up/kernel", "2.weight", "linear"))
"""Names of the two factors below."""


def low_rank(vec: jax.Array, rank: int, features: int, dtype: DTypeLike | None, *, bias: bool) -> jax.Array:
    """U (D silu(vec)), with a bias or without, at zero at first: (..., d) -> (..., features); inside a module, whose "down"
    and "up" they are."""
    init = nn.initializers.normal(0.02)
    down = nn.Dense(rank, use_bias=False, dtype=dtype, kernel_init=init, name="down")(nn.silu(vec))
    return nn.Dense(features, use_bias=bias, dtype=dtype, kernel_init=nn.initializers.zeros, name="up")(down)


def check_rank(op: OpSpec, sizes: Sizes) -> None:
    """Raise `BadInput` where the option `rank` of a modulation is none."""
    if not 1 <= op.option("rank") <= sizes.width:
        raise BadInput(f"{op.kind} rank: got {op.option('rank')}, expected 1 to the width {sizes.width}")


class Modulation(Operator):
    """Base of modulations: from `vec` (b, d), or (b, n, d) for every token its own, to (b, parts d) or (b, n, parts d).

    Attributes:
        parts: vectors of width d that the block takes; set by the slot.
        each: whether every token has a `vec` of its own; likewise.
    """

    parts: int = 6
    each: bool = False

    role = "modulation"
    reads = ("vec",)
    given = ("parts", "each")
    readout = ""
    default_init = "transplant"

    @property
    def features(self) -> int:
        """Numbers that come out, parts x d."""
        return self.parts * self.width

    @property
    def vecs(self) -> int:
        """Conditioning vectors of an image."""
        return self.tokens if self.each else 1

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {"vec": jnp.zeros((1, self.width))}

    def shared_part(self) -> SiluLinear | None:
        """What computes from `vec`, once a pass, `Context.shared[kind]` for all operators of the kind; None: nothing."""
        return None

    def start(self, donor: Operator) -> str:
        return KEPT if self == donor else FITTED

    def affine(self, weights: Params, shared: Params | None) -> Affine:
        """The map of u that `weights`, with the model's `shared` ones, compute."""
        raise NotImplementedError

    def fit(
        self, wanted: Sequence[Affine], u: Activated, shared: Params | None = None
    ) -> tuple[list[Params], Params | None]:
        """Weights of one operator for each of the maps `wanted`, with the least mean squared error over the conditions `u`;
        and the weights that they share, None where they share none. `shared`: such weights that are there already and stay
        as they are."""
        raise NotImplementedError


class AdaLN(Modulation):
    """W silu(vec) + b, one W for every block: adaLN-zero as published."""

    kind = "adaln"
    torch_keys = linear_keys("", "1")
    axes: ClassVar[Axes] = {"adaln/kernel": IN_HIDDEN}

    @nn.compact
    def __call__(self, *, vec: jax.Array) -> jax.Array:
        linear = SiluLinear(self.features, self.dtype)
        nn.share_scope(self, linear)  # its kernel and bias are the operator's own
        return linear(vec)

    def start(self, donor: Operator) -> str:
        return KEPT  # any of the others is such a map

    def affine(self, weights: Params, shared: Params | None) -> Affine:
        return np.asarray(weights["kernel"], np.float64), np.asarray(weights["bias"], np.float64)

    def fit(
        self, wanted: Sequence[Affine], u: Activated, shared: Params | None = None
    ) -> tuple[list[Params], Params | None]:
        return [_params(kernel=kernel, bias=bias) for kernel, bias in wanted], None

    def cost(self) -> Cost:
        return linear_cost(self.width, self.features, self.vecs)


class AdaLNNoBias(Modulation):
    """W silu(vec), one W for every block: AuraFlow's, without a bias."""

    kind = "adaln_no_bias"
    axes: ClassVar[Axes] = {"adaln_no_bias/kernel": IN_HIDDEN}

    @nn.compact
    def __call__(self, *, vec: jax.Array) -> jax.Array:
        linear = SiluLinear(self.features, self.dtype, bias=False)
        nn.share_scope(self, linear)
        return linear(vec)

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        """Never: in files of other families a kernel alone is a damaged `AdaLN`."""
        return None

    def affine(self, weights: Params, shared: Params | None) -> Affine:
        return np.asarray(weights["kernel"], np.float64), np.zeros(self.features)

    def fit(
        self, wanted: Sequence[Affine], u: Activated, shared: Params | None = None
    ) -> tuple[list[Params], Params | None]:
        # ||W u + b - K u||^2 is least on average for K = W + v b, u v the best stand-in for 1: E[u u^T] v = E[u]. Directions
        # in which u is next to nothing stay out of v, or it would explode once training moves u there.
        second = u.covariance + np.outer(u.mean, u.mean)
        one = np.linalg.pinv(second, rcond=1e-6, hermitian=True) @ u.mean
        return [_params(kernel=kernel + np.outer(one, bias)) for kernel, bias in wanted], None

    def cost(self) -> Cost:
        return Cost(self.width * self.features, 2 * self.vecs * self.width * self.features)


class AdaLNShared(Modulation):
    """S silu(vec) + b + E_l: S and b one for all blocks, the table E_l (parts, d) each block's own.

    PixArt's adaLN-single (arXiv 2310.00426, Section 2.3). The shared part is computed once a pass, of weights that stand in
    `params["shared"]["adaln_shared"]`; blocks whose modulations have different numbers of parts cannot share one.
    """

    kind = "adaln_shared"
    reads = ("shared",)
    axes: ClassVar[Axes] = {"adaln_shared/kernel": IN_HIDDEN}
    torch_keys = (TorchKey("table", "table", "same"),)

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {"shared": {self.kind: jnp.zeros((1, self.features))}}

    @nn.compact
    def __call__(self, *, shared: dict[str, jax.Array]) -> jax.Array:
        table = self.param("table", nn.initializers.zeros, (self.parts, self.width), jnp.float32)
        return shared[self.kind] + table.reshape(-1)

    def shared_part(self) -> SiluLinear:
        return SiluLinear(self.features, self.dtype, parent=None)

    def affine(self, weights: Params, shared: Params | None) -> Affine:
        if shared is None:
            raise BadInput(f"{self.kind}: no shared weights, expected those of the model that it is in")
        bias = np.asarray(shared["bias"], np.float64) + np.asarray(weights["table"], np.float64).reshape(-1)
        return np.asarray(shared["kernel"], np.float64), bias

    def fit(
        self, wanted: Sequence[Affine], u: Activated, shared: Params | None = None
    ) -> tuple[list[Params], Params | None]:
        # sum_l ||W_l u + b_l - (S u + b + E_l)||^2 is least for S the mean of the W_l and E_l the mean of what is left.
        if shared is None:
            kernel = np.mean([kernel for kernel, _ in wanted], axis=0)
            bias = np.mean([bias for _, bias in wanted], axis=0)
            shared = _params(kernel=kernel, bias=bias)
        kernel, bias = (np.asarray(shared[name], np.float64) for name in ("kernel", "bias"))
        tables = [own - bias + u.mean @ (matrix - kernel) for matrix, own in wanted]
        return [_params(table=table.reshape(self.parts, -1)) for table in tables], shared

    def cost(self) -> Cost:
        return Cost(self.features, 0)


class AdaLNSharedLowRank(AdaLNShared):
    """`adaln_shared` with U_l (D_l silu(vec)) added, a low-rank map of each block's own: between one map for all blocks
    (rank 0) and one for each (rank d).

    Attributes:
        rank: width between the two factors.
    """

    rank: int = 16

    kind = "adaln_shared_lowrank"
    reads = ("shared", "vec")
    axes: ClassVar[Axes] = {"adaln_shared_lowrank/kernel": IN_HIDDEN}
    torch_keys = (*AdaLNShared.torch_keys, *LOW_RANK_KEYS)

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        inputs, reads = super().example()
        return inputs, {**reads, "vec": jnp.zeros((1, self.width))}

    @nn.compact
    def __call__(self, *, shared: dict[str, jax.Array], vec: jax.Array) -> jax.Array:
        table = self.param("table", nn.initializers.zeros, (self.parts, self.width), jnp.float32)
        return shared[self.kind] + table.reshape(-1) + low_rank(vec, self.rank, self.features, self.dtype, bias=False)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        check_rank(op, sizes)

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        """Never: the files that hold shared modulations know one kind of them."""
        return None

    def affine(self, weights: Params, shared: Params | None) -> Affine:
        kernel, bias = super().affine(weights, shared)
        down, up = (np.asarray(weights[name]["kernel"], np.float64) for name in ("down", "up"))
        return kernel + down @ up, bias

    def fit(
        self, wanted: Sequence[Affine], u: Activated, shared: Params | None = None
    ) -> tuple[list[Params], Params | None]:
        _, shared = super().fit(wanted, u, shared)
        assert shared is not None, "fitted above"
        root, (kernel, bias) = square_root(u.covariance), (np.asarray(shared[n], np.float64) for n in ("kernel", "bias"))
        maps = [reduced_rank(w - kernel, b - bias, u.mean, root, self.rank) for w, b in wanted]
        return [
            {**_params(table=table.reshape(self.parts, -1)), "down": _params(kernel=down), "up": _params(kernel=up)}
            for down, up, table in maps
        ], shared

    def cost(self) -> Cost:
        d, r, out = self.width, self.rank, self.features
        return Cost(out + r * (d + out), 2 * self.vecs * r * (d + out))


class AdaLNLowRank(Modulation):
    """U (D silu(vec)) + b with D (d, rank): a low-rank W for every block (the adaLN-LoRA of NVIDIA's Cosmos models).

    Attributes:
        rank: width between the two factors.
    """

    rank: int = 64

    kind = "adaln_lowrank"
    torch_keys = (*LOW_RANK_KEYS, TorchKey("up/bias", "2.bias", "same"))

    @nn.compact
    def __call__(self, *, vec: jax.Array) -> jax.Array:
        return low_rank(vec, self.rank, self.features, self.dtype, bias=True)

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        check_rank(op, sizes)

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        return None if super().recognise(shapes, overrides) is None else {"rank": shapes["1.weight"][0]}

    def affine(self, weights: Params, shared: Params | None) -> Affine:
        down, up = (np.asarray(weights[name]["kernel"], np.float64) for name in ("down", "up"))
        return down @ up, np.asarray(weights["up"]["bias"], np.float64)

    def fit(
        self, wanted: Sequence[Affine], u: Activated, shared: Params | None = None
    ) -> tuple[list[Params], Params | None]:
        root = square_root(u.covariance)
        maps = [reduced_rank(*one, u.mean, root, self.rank) for one in wanted]
        return [{"down": _params(kernel=down), "up": _params(kernel=up, bias=bias)} for down, up, bias in maps], None

    def cost(self) -> Cost:
        d, r, out = self.width, self.rank, self.features
        return Cost(d * r + r * out + out, 2 * self.vecs * r * (d + out))


def _params(**leaves: np.ndarray) -> Params:
    return {name: jnp.asarray(leaf, jnp.float32) for name, leaf in leaves.items()}
