"""The check after every edit: does the parameter tree fit the spec?"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from graftax.errors import BadInput
from graftax.models import param_shapes
from graftax.models.backbone import find
from graftax.models.joined import Joined
from graftax.ops.base import Params
from graftax.spec import ModelSpec

SHOWN = 5
"""How many leaves an error message names before it only counts."""


def leaves_by_path(params: Params) -> dict[str, Any]:
    """The leaves of a nested dict by path, "blocks/07/mixer/qkv/kernel"."""
    return flatten_dict(params, sep="/")


@functools.lru_cache(maxsize=64)
def expected_leaves(spec: ModelSpec) -> dict[str, jax.ShapeDtypeStruct]:
    """The shape that every leaf of `spec`'s parameters must have, by path. Shared: do not change it."""
    return leaves_by_path(param_shapes(spec))


def check(spec: ModelSpec, params: Params) -> None:
    """Raise `BadInput` unless `params` has exactly the leaves of `spec`, in shape, of a float type.

    Leaves are numpy's, jax's, or `Joined`. The message names the first few that are missing, extra, mis-shaped or mis-typed
    and counts the rest. Values are not looked at.
    """
    find(spec).check(spec)
    expected, found = expected_leaves(spec), leaves_by_path(params)
    faults = [f"{path} is missing" for path in expected if path not in found]
    faults += [f"{path} is not in the spec" for path in found if path not in expected]
    faults += [f"{path} {fault}" for path in expected if path in found and (fault := _fault(found[path], expected[path]))]
    if faults:
        rest = f", and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise BadInput(f"parameters do not fit the spec: {'; '.join(faults[:SHOWN])}{rest}")


def check_trainable(what: str, params: Params) -> None:
    """Raise `BadInput` where a leaf is not float32: smaller types would lose the updates of training."""
    leaves = leaves_by_path(params)
    if other := [(path, type(leaf)) for path, leaf in leaves.items() if not isinstance(leaf, np.ndarray | jax.Array)]:
        raise BadInput(f"{what}: {other[0][0]} is a {other[0][1].__name__}, expected a float32 array")
    small = [(path, leaf.dtype) for path, leaf in leaves.items() if leaf.dtype != jnp.float32]
    if small:
        raise BadInput(f"{what}: {small[0][0]} is {small[0][1]}, expected float32; graftax.load(.., dtype='float32')")


def _fault(leaf: Any, expected: jax.ShapeDtypeStruct) -> str | None:
    if not isinstance(leaf, np.ndarray | jax.Array | Joined):
        return f"is a {type(leaf).__name__}, expected an array"
    if leaf.shape != expected.shape:
        return f"has shape {leaf.shape}, expected {expected.shape}"
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"has type {leaf.dtype}, expected a float type"
    return None
