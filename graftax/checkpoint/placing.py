"""Parameters from host memory, or from mapped files, onto devices."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from graftax.checkpoint.hosts import gather
from graftax.errors import NonFinite
from graftax.models.arguments import as_float_type

LARGE = 8 * 2**30
"""Bytes of a model in float32 from which it is kept in the type that it is stored in, unless told otherwise."""


def place_params(params: Any, dtype: DTypeLike | None = None, shardings: Any = None) -> Any:
    """Parameters (numpy, or `Joined`) as jax arrays of `dtype`; None: float32, the stored type from `LARGE` on.

    `shardings`: of every leaf, a tree like `params`; then every device is given its shards alone, and of a mapped file no
    more is read than these. Leaves go one after the other: beside what devices hold there are never more copies in host
    memory than of one leaf. Raises `NonFinite`, naming the leaf, where one holds NaN or infinity, `dtype`'s own included.
    """
    leaves = jax.tree.leaves(params)
    large = 4 * sum(leaf.size for leaf in leaves) > LARGE
    target = None if dtype is None and large else as_float_type(jnp.float32 if dtype is None else dtype)

    def put(leaf: Any, sharding: NamedSharding | None = None) -> jax.Array:
        kind = leaf.dtype if target is None else target
        if sharding is None:
            placed = jnp.asarray(np.asarray(leaf), kind)
        else:
            placed = jax.make_array_from_callback(leaf.shape, sharding, lambda index: np.asarray(leaf[index], kind))
        return jax.block_until_ready(placed)  # copies made for this leaf are let go of before the next one's

    with np.errstate(over="ignore"):  # what overflows is refused by name
        placed = jax.tree.map(put, params) if shardings is None else jax.tree.map(put, params, shardings)
    _require_finite(placed, shared=shardings is not None)
    return placed


def _require_finite(params: Any, shared: bool) -> None:
    """A pass over the weights where they lie: each device looks at its shards, so that they need not talk to each other.
    Where all processes share the arrays, all hear of it."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    seen = [_all_finite(leaf, leaf.sharding if shared else None) for _, leaf in leaves]
    parts = jax.device_get([[shard.data for shard in flags.addressable_shards] for flags in seen])
    pairs = zip(leaves, parts, strict=True)
    own = ["/".join(str(key.key) for key in path) for (path, _), sound in pairs if not np.all(sound)]
    if spoilt := sorted({name for names in (gather(own) if shared else [own]) for name in names}):
        more = f" and {len(spoilt) - 1} more" if len(spoilt) > 1 else ""
        raise NonFinite(f"weights {spoilt[0]}{more}: NaN or infinite as {leaves[0][1].dtype}, expected finite numbers")


@partial(jax.jit, static_argnames="place")
def _all_finite(leaf: jax.Array, place: NamedSharding | None) -> jax.Array:
    """Whether numbers are finite: (1,), on a mesh (devices,), each device's of its own part.

    One program for the mesh: a program for every device would be compiled as often as there are devices.
    """

    def look(part: jax.Array) -> jax.Array:
        return jnp.isfinite(part).all()[None]

    if place is None:
        return look(leaf)
    everywhere = PartitionSpec(place.mesh.axis_names)
    return jax.shard_map(look, mesh=place.mesh, in_specs=place.spec, out_specs=everywhere, check_vma=False)(leaf)
