"""Arguments as callers have them, made what the functions here take, or refused by name."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax.errors import BadInput


def as_key(rng: Any) -> jax.Array:
    """A typed key, or several, of `jax.random.key(0)`, `jax.random.PRNGKey(0)` and arrays of either: the same numbers.

    Raises `BadInput` on anything else, a bare seed too.
    """
    dtype = getattr(rng, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return rng
    try:
        if dtype == jnp.uint32:
            return jax.random.wrap_key_data(rng)
    except (TypeError, ValueError):
        pass  # numbers of another shape than a key's
    what = f"{dtype}{rng.shape}" if hasattr(rng, "shape") else repr(rng)
    raise BadInput(f"rng: got {what}, expected a key like jax.random.key(0)")


def as_float_type(dtype: Any) -> np.dtype | None:
    """A float type by any of its names, None for None. Raises `BadInput` on other types and on names of none."""
    if dtype is None:
        return None
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise BadInput(f"dtype: got {dtype!r}, expected a float type like 'float32', 'bfloat16' or 'float16'")
    return found


def as_path(path: Any) -> str:
    """A path given as text or as a path. Raises `BadInput` on anything else."""
    if not isinstance(path, str | os.PathLike):
        raise BadInput(f"path: got {path!r}, expected text or a path")
    return os.fspath(path)
