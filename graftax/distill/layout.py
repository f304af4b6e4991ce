"""How stage 1 lies on a mesh, inside `jit`: the batch is split over its data axes, scions are on every device."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from graftax.train.sharding import batch_sharding


def split_batch(tree: Any, mesh: Mesh | None) -> Any:
    """Leaves (b, ...) held to their parts of the batch; without a mesh the tree as it is."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, batch_sharding(mesh))


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Every leaf held whole on every device; without a mesh the tree as it is."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))
