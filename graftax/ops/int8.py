"""Weights of eight bits: what stands in the place of a kernel, and how it becomes one again where an operator is called."""

from __future__ import annotations

import sys
from typing import Any

import jax

from graftax.ops.base import Params


def dequantised(params: Params) -> Params:
    """`params` with every `qwix.QArray` as the float array that it stands for, in the type of its scales.

    To be called inside of `jit`, where the operator runs: a compiler for accelerators reads the eight bits from memory and
    widens them on the way into the product.
    """
    qwix = sys.modules.get("qwix")  # where nobody imported it nothing is quantised
    if qwix is None:
        return params

    def plain(leaf: Any) -> Any:
        return qwix.dequantize(leaf) if isinstance(leaf, qwix.QArray) else leaf

    return jax.tree.map(plain, params, is_leaf=lambda leaf: isinstance(leaf, qwix.QArray))
