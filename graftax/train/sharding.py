"""Where arrays live: a mesh of three axes and one rule from a leaf's path and shape to its place on it.

`data` splits the batch only. `fsdp` splits the batch and every large parameter. `tensor` splits the hidden dimension
of the paired projections. The rule reads the end of a path, so averages and optimiser moments, whose paths end like
their parameter's, land where the parameter is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from graftax.errors import BadInput

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
SMALL = 4096  # leaves with fewer elements are cheaper to copy than to gather
# The first of a pair of projections is split over its outputs, the second over its inputs, so that what lies between
# them never moves.
COLUMN = ("qkv", "fc1", "in_proj")
ROW = ("proj", "fc2", "out_proj")


@dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; -1 for `data` takes all that the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def build(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh over `devices` (default: all), axes `AXES`, compiler-propagated (Auto) shardings.

        Raises BadInput if the sizes do not multiply to the number of devices.
        """
        devices = list(jax.devices() if devices is None else devices)
        if self.fsdp < 1 or self.tensor < 1 or self.data == 0 or self.data < -1:
            raise BadInput(f"mesh {self}: expected sizes of 1 or more (-1 allowed for data)")
        inner = self.fsdp * self.tensor
        data = len(devices) // inner if self.data == -1 else self.data
        if data * inner != len(devices):
            raise BadInput(f"mesh {self}: sizes do not multiply to the {len(devices)} devices there are")
        grid = np.array(devices).reshape(data, self.fsdp, self.tensor)
        return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First dimension split over `data` and `fsdp`, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def put_batch(batch: Any, mesh: Mesh | None) -> Any:
    """Move a tree of host arrays (b, ...) to the device(s), each process its own part of the batch.

    Returns at once; the copy runs beside the device's work. Raises BadInput if the batch does not divide over the
    mesh.
    """
    if mesh is None:
        return jax.device_put(batch)
    sharding = batch_sharding(mesh)
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    for leaf in jax.tree.leaves(batch):
        size = leaf.shape[0] * jax.process_count()
        if size % parts:
            raise BadInput(f"batch size {size}: does not divide over {parts} devices (data x fsdp of the mesh)")
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A tree like `tree` (leaves need only a shape) with the `NamedSharding` of each leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, leaf_spec(_names(path), np.shape(leaf), mesh)), tree
    )


def shard_tree(tree: Any, mesh: Mesh) -> Any:
    """Place every leaf of a parameter, state or optimiser tree on the mesh."""
    return jax.device_put(tree, tree_shardings(tree, mesh))


def constrain(tree: Any, mesh: Mesh | None) -> Any:
    """Inside `jit`: hold a tree to the places `shard_tree` gives it, so that states never move between steps."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, tree_shardings(tree, mesh))


def leaf_spec(names: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How one leaf is split: `names` are the keys on its path, root first.

    `tensor` takes the last dimension of column kernels and the first of row kernels; `fsdp` the largest other
    dimension. Where a size does not divide, or the leaf is small, the axis leaves it whole. The leading axis of
    collected blocks is never split: the loop over blocks takes one row at a time.
    """
    if _collected(names):
        return PartitionSpec(None, *leaf_spec(names[-2:], shape[1:], mesh))
    if math.prod(shape) < SMALL:
        return PartitionSpec()
    axes: list[str | None] = [None] * len(shape)
    owner = names[-2] if len(names) > 1 and names[-1] == "kernel" else ""
    row = owner in ROW or (bool(owner) and "merges" in names)  # merges take in what lies whole on every device
    side = -1 if owner in COLUMN else 0 if row else None
    if side is not None and len(shape) == 2 and shape[side] % mesh.shape["tensor"] == 0:
        axes[side] = "tensor"
    free = [i for i, size in enumerate(shape) if axes[i] is None and size % mesh.shape["fsdp"] == 0]
    if free:
        axes[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*axes)


def _collected(names: tuple[str, ...]) -> bool:
    """Whether a leaf belongs to collected blocks: ".../blocks/mixer/..." and not ".../blocks/07/..."."""
    inside = names[names.index("blocks") + 1 :] if "blocks" in names else ()
    return bool(inside) and not inside[0].isdigit()


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", "")))) for k in path)
