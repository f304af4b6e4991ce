"""`Joined`: one leaf of several tensors of a file, which are joined where they are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import DTypeLike

from graftax.ops.base import Params


class Joined:
    """Arrays one after the other along an axis, as one array whose parts are made when they are asked for.

    Files keep in several tensors what is one leaf to us (queries, keys and values). Were these joined as they are read, a
    fifth of a Flux would lie in host memory before the first device has its part.

    Attributes:
        arrays: of one type, and of one shape but for their sizes along `axis`.
        axis: along which they follow each other.
        shape: of the whole.
        dtype: of the whole.
    """

    def __init__(self, arrays: Sequence[np.ndarray], axis: int) -> None:
        first = arrays[0]
        self.arrays, self.axis = tuple(arrays), axis
        total = sum(array.shape[axis] for array in arrays)
        self.shape: tuple[int, ...] = (*first.shape[:axis], total, *first.shape[axis + 1 :])
        self.dtype: np.dtype = np.result_type(*arrays)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return sum(array.size for array in self.arrays)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """A part, by a slice without steps for every axis: a view where it lies in one of the arrays, else a copy."""
        start, stop, _ = index[self.axis].indices(self.shape[self.axis])
        found, offset = list[np.ndarray](), 0
        for array in self.arrays:
            size = array.shape[self.axis]
            low, high = max(start - offset, 0), min(stop - offset, size)
            if low < high:
                found.append(array[(*index[: self.axis], slice(low, high), *index[self.axis + 1 :])])
            offset += size
        return found[0] if len(found) == 1 else np.concatenate(found, self.axis)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """The whole, for `np.asarray` and all that calls it."""
        if copy is False:
            raise ValueError("a Joined is several arrays, expected copy=None or True")
        whole: Any = self[(slice(None),) * self.ndim]
        return whole if dtype is None else whole.astype(dtype, copy=False)


def whole(params: Params) -> Params:
    """A parameter tree with every `Joined` as one array, for what computes with its leaves; `params` itself without any."""
    if not any(isinstance(leaf, Joined) for leaf in jax.tree.leaves(params)):
        return params
    return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, Joined) else leaf, params)
