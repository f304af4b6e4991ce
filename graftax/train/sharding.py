"""Where arrays live: a mesh of three axes and one table from logical axes to them.

`data` splits the batch only. `fsdp` splits the batch and every large parameter. `tensor` splits the hidden dimension
of the paired projections and the heads of attention. Operators declare the logical axes of their leaves by the end of the
leaf's path (`graftax.ops.LEAF_AXES`), so averages and optimiser moments, whose paths end like their parameter's, land where
the parameter is. Activations get theirs in the models (`graftax.ops.placement`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from graftax.blocks import BLOCKS
from graftax.errors import BadInput
from graftax.models import merge
from graftax.ops import LEAF_AXES
from graftax.ops.placement import Axes, placing

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
SMALL = 4096  # leaves with fewer elements are cheaper to copy than to gather
AnyMesh = Mesh | AbstractMesh


@dataclass(frozen=True)
class AxisRules:
    """The table: which mesh axis splits which logical axis, None for none. The batch is always over `data` and `fsdp`.

    Raises BadInput on unknown mesh axes and where one would split two axes of an array.

    Attributes:
        weights: the largest axis of every large leaf that nothing else splits.
        hidden: neurons and channels between paired projections.
        heads: of attention.
        tokens: of the residual stream; "tensor" is the sequence parallelism of Korthikanti et al. (arXiv 2205.05198).
    """

    weights: str | None = "fsdp"
    hidden: str | None = "tensor"
    heads: str | None = "tensor"
    tokens: str | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "heads", "hidden"):
            if getattr(self, name) not in (None, "tensor"):  # the others split the batch of the same arrays
                raise BadInput(f"mesh rules: {name} is {getattr(self, name)!r}, expected 'tensor' or None")
        if self.weights not in (None, *AXES):
            raise BadInput(f"mesh rules: weights is {self.weights!r}, expected one of {AXES} or None")
        if self.weights is not None and self.weights == self.hidden:
            raise BadInput(f"mesh rules: weights and hidden are both {self.hidden!r}, expected different mesh axes")

    def mesh_axes(self, name: str | None) -> tuple[str, ...]:
        """The mesh axes that split a logical axis."""
        if name == "batch":
            return BATCH_AXES
        axis = getattr(self, name, None) if name else None
        return () if axis is None else (axis,)


RULES = AxisRules()


@dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis, and what the axes split.

    Attributes:
        data: splits the batch; -1 takes all devices that the others leave.
        fsdp: splits the batch and every large parameter.
        tensor: splits hidden dimensions and heads.
        rules: the table.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rules: AxisRules = field(default_factory=AxisRules)

    def build(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh over `devices` (default: all), axes `AXES`, compiler-propagated (Auto) shardings.

        Raises BadInput if the sizes do not multiply to the number of devices.
        """
        devices = list(jax.devices() if devices is None else devices)
        grid = np.array(devices).reshape(self.shape(len(devices)))
        return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))

    def abstract(self) -> AbstractMesh:
        """The mesh without devices, to compute shardings for machines that are not there; `data` -1 counts as 1."""
        count = max(self.data, 1) * self.fsdp * self.tensor
        return AbstractMesh(self.shape(count), AXES, axis_types=(AxisType.Auto,) * len(AXES))

    @classmethod
    def parse(cls, text: str) -> MeshConfig:
        """The mesh that a text like "data=2,fsdp=4" describes. Raises BadInput on others."""
        sizes: dict[str, int] = {}
        for part in text.split(","):
            name, _, size = (piece.strip() for piece in part.partition("="))
            if name not in AXES or name in sizes or not size.isdecimal():
                raise BadInput(f"mesh {text!r}: expected axes of {AXES} with their sizes, like data=2,fsdp=4")
            sizes[name] = int(size)
        mesh = cls(data=sizes.get("data", 1), fsdp=sizes.get("fsdp", 1), tensor=sizes.get("tensor", 1))
        mesh.shape(math.prod(sizes.values()))
        return mesh

    def shape(self, devices: int) -> tuple[int, int, int]:
        """Devices along each of `AXES`. Raises BadInput if the sizes do not multiply to `devices`."""
        if self.fsdp < 1 or self.tensor < 1 or self.data == 0 or self.data < -1:
            raise BadInput(f"mesh {self}: expected sizes of 1 or more (-1 allowed for data)")
        inner = self.fsdp * self.tensor
        data = devices // inner if self.data == -1 else self.data
        if data * inner != devices:
            raise BadInput(f"mesh {self}: sizes do not multiply to the {devices} devices there are")
        return data, self.fsdp, self.tensor

    def check(self, devices: int, batch_size: int) -> None:
        """Raise BadInput where the mesh does not fit `devices`, or a batch (or piece of one) does not divide over it."""
        data, fsdp, _ = self.shape(devices)
        if batch_size % (data * fsdp):
            raise BadInput(f"batch size {batch_size}: does not divide over {data * fsdp} devices (data x fsdp of the mesh)")

    def check_heads(self, num_heads: int) -> None:
        """Raise BadInput where a model's heads do not divide over `tensor`."""
        if self.rules.heads and num_heads % self.tensor:
            raise BadInput(f"mesh {self}: tensor={self.tensor} does not divide the model's {num_heads} heads")

    def __str__(self) -> str:
        rules = [f"{name}={value}" for name, value in vars(self.rules).items() if value != getattr(RULES, name)]
        return ",".join([*(f"{axis}={getattr(self, axis)}" for axis in AXES), *rules])


# --- Batches and activations -------------------------------------------------------------------------------------------


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """First dimension split over `data` and `fsdp`, the rest whole.

    Axes of one device are left out, as XLA leaves them out of what it returns: a step's batch comes from a program.
    """
    split = tuple(axis for axis in BATCH_AXES if mesh.shape[axis] > 1)
    return NamedSharding(mesh, PartitionSpec(split or None))


def token_sharding(shape: Sequence[int], mesh: AnyMesh) -> NamedSharding:
    """As `batch_sharding`, but whole where the first of an array's dimensions does not divide."""
    return NamedSharding(mesh, activation_spec(("batch", *(None,) * (len(shape) - 1)), shape, mesh))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh of several devices that arrays of a tree lie on; None where there is none."""
    found = (leaf.sharding for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))
    meshes = (place.mesh for place in found if isinstance(place, NamedSharding) and place.mesh.size > 1)
    return next((mesh for mesh in meshes if isinstance(mesh, Mesh)), None)


def replicated(mesh: AnyMesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


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


def place_batch(batch: Any, mesh: AnyMesh | None, axis: int = 0) -> Any:
    """Inside `jit`: hold leaves whose `axis` counts images to their parts of the batch; without a mesh as they are.

    Where the batch does not divide over the mesh it is left whole.
    """
    if mesh is None:
        return batch
    return jax.tree.map(lambda x: _hold(mesh, RULES, x, (*(None,) * axis, "batch", *(None,) * (x.ndim - axis - 1))), batch)


def activations(mesh: AnyMesh | None, rules: AxisRules = RULES) -> AbstractContextManager[None]:
    """While this is open, what models call `place` on is traced with its place on the mesh, and kernels run there part by
    part; None: nothing is held.

    An axis whose size does not divide is left whole.
    """
    if mesh is None:
        return placing(None)
    return placing(partial(_hold, mesh, rules), partial(_part, mesh, rules), partial(_count, mesh, rules))


def kernels(mesh: AnyMesh | None, rules: AxisRules = RULES) -> AbstractContextManager[None]:
    """`activations` for kernels alone, which the compiler cannot split; where all else goes is left to it."""
    return placing(None) if mesh is None else placing(None, partial(_part, mesh, rules), partial(_count, mesh, rules))


def _hold(mesh: AnyMesh, rules: AxisRules, x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, activation_spec(names, x.shape, mesh, rules)))


def _part(
    mesh: AnyMesh, rules: AxisRules, function: Callable[..., jax.Array], axes: Sequence[Axes]
) -> Callable[..., jax.Array]:
    def run(*arrays: jax.Array) -> jax.Array:
        specs = tuple(activation_spec(names, a.shape, mesh, rules) for names, a in zip(axes, arrays, strict=True))
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)

    return run


def _count(mesh: AnyMesh, rules: AxisRules, name: str) -> int:
    return math.prod(mesh.shape[axis] for axis in rules.mesh_axes(name) if axis in mesh.shape)


def activation_spec(
    names: Sequence[str | None], shape: Sequence[int], mesh: AnyMesh, rules: AxisRules = RULES
) -> PartitionSpec:
    """How an array with the logical axes `names` is split. Meshes may lack axes, as those that users make."""
    axes = [tuple(axis for axis in rules.mesh_axes(name) if axis in mesh.shape) for name in names]
    fits = [size % math.prod(mesh.shape[a] for a in over) == 0 for size, over in zip(shape, axes, strict=True)]
    return PartitionSpec(*(over if over and fit else None for over, fit in zip(axes, fits, strict=True)))


# --- Parameters and states ---------------------------------------------------------------------------------------------


def tree_shardings(tree: Any, mesh: AnyMesh, rules: AxisRules = RULES, *, stacked: bool = False) -> Any:
    """A tree like `tree` (leaves need only a shape) with the `NamedSharding` of each leaf.

    `stacked`: all leaves have one more axis in front, over blocks or sites, which stays whole.
    """

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        shape = np.shape(leaf)
        if stacked and shape:
            return NamedSharding(mesh, PartitionSpec(None, *leaf_spec(_names(path), shape[1:], mesh, rules)))
        return NamedSharding(mesh, leaf_spec(_names(path), shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(of, tree)


def shard_tree(tree: Any, mesh: Mesh, rules: AxisRules = RULES, *, stacked: bool = False) -> Any:
    """Place every leaf of a parameter, state or optimiser tree on the mesh. All processes must hold equal leaves."""
    return put_tree(tree, tree_shardings(tree, mesh, rules, stacked=stacked))


def put_tree(tree: Any, shardings: Any) -> Any:
    """Leaves at their `shardings`, which may reach devices of other processes: each process puts its own parts there."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def to_host(tree: Any) -> Any:
    """Whole numpy arrays of all leaves, on every process, one leaf at a time; all processes must call it."""
    from jax.experimental import multihost_utils

    def fetch(leaf: Any) -> np.ndarray:
        spread = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True) if spread else leaf)

    return jax.tree.map(fetch, tree)


def constrain(tree: Any, mesh: Mesh | None, rules: AxisRules = RULES, *, stacked: bool = False) -> Any:
    """Inside `jit`: hold a tree to the places `shard_tree` gives it, so that states never move between steps."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, tree_shardings(tree, mesh, rules, stacked=stacked))


def leaf_spec(names: tuple[str, ...], shape: tuple[int, ...], mesh: AnyMesh, rules: AxisRules = RULES) -> PartitionSpec:
    """How one leaf is split: `names` are the keys on its path, root first.

    The axis of a kernel that its operator calls hidden goes where the rules put that; the largest other axis that divides
    where they put weights, the hidden one if it is the only one. Where no size divides, or the leaf is small, it stays
    whole. The leading axis of collected blocks is never split: the loop over blocks takes one row at a time.
    """
    if _collected(names) and shape:
        return PartitionSpec(None, *leaf_spec(names[-2:], shape[1:], mesh, rules))
    if math.prod(shape) < SMALL:
        return PartitionSpec()
    axes: list[str | None] = [None] * len(shape)
    hidden = _hidden_axis(names, len(shape))
    if (
        hidden is not None
        and rules.hidden
        and mesh.shape[rules.hidden] > 1
        and shape[hidden] % mesh.shape[rules.hidden] == 0
    ):
        axes[hidden] = rules.hidden
    if rules.weights:
        free = [i for i, size in enumerate(shape) if axes[i] is None and size % mesh.shape[rules.weights] == 0]
        if free:
            axes[max(free, key=lambda i: (i != hidden, shape[i]))] = rules.weights
    return PartitionSpec(*axes)


def _hidden_axis(names: tuple[str, ...], ndim: int) -> int | None:
    """Which axis of a leaf (..., in, out) is hidden, None where nobody declares one."""
    if len(names) < 2 or ndim < 2:
        return None
    owner = names[-2].lstrip("0123456789").removeprefix("_")  # collected blocks number what a slot holds: "0_adaln"
    ends = ("/".join(names[-3:]), f"{owner}/{names[-1]}")  # of a kernel in two factors, "fc1/up/kernel", the longer one
    axes = merge.AXES if merge.MERGES in names else next((LEAF_AXES[end] for end in ends if end in LEAF_AXES), ())
    return ndim - len(axes) + axes.index("hidden") if "hidden" in axes else None


def _collected(names: tuple[str, ...]) -> bool:
    """Whether a leaf belongs to collected blocks, ".../blocks/dit/mixer/..."; plain ones are ".../blocks/07/mixer/...",
    those of a plan ".../blocks/weights/0/..."."""
    inside = names[names.index("blocks") + 1 :] if "blocks" in names else ()
    return bool(inside) and inside[0] in BLOCKS


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", "")))) for k in path)
