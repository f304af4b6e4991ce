"""What a layout costs: bytes on every device, and large leaves that lie whole on all of them though they need not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from graftax.models import param_shapes
from graftax.spec import ModelSpec
from graftax.train.diffusion_task import training_tree
from graftax.train.optimiser import OptimiserConfig
from graftax.train.sharding import RULES, AnyMesh, AxisRules, tree_shardings
from graftax.train.state import TrainState, create_state

LARGE = 4 * 2**20
"""Bytes from which a leaf that is whole on every device is worth a line."""


@dataclass(frozen=True)
class ShardingReport:
    """What a layout costs.

    Attributes:
        total_bytes: of a tree as one copy.
        device_bytes: on one device.
        whole: leaves above `LARGE` that are whole on every device although they could be split, by path with their bytes.
        indivisible: those of which no axis divides over the mesh, likewise.
    """

    total_bytes: int
    device_bytes: int
    whole: Mapping[str, int]
    indivisible: Mapping[str, int]

    def __str__(self) -> str:
        share = self.device_bytes / max(self.total_bytes, 1)
        lines = [f"{size_text(self.total_bytes)}, {size_text(self.device_bytes)} on each device ({share:.1%})"]
        for text, leaves in (("whole though it could be split", self.whole), ("no axis divides", self.indivisible)):
            lines += [f"  {text}: {path}, {size_text(size)}" for path, size in leaves.items()]
        return "\n".join(lines)


def sharding_report(tree: Any, mesh: AnyMesh, rules: AxisRules = RULES) -> ShardingReport:
    """The report on `tree`, whose leaves are arrays or shapes with dtype.

    A leaf counts where its own sharding puts it, else where the rules do. It could be split if one of its axes divides by
    a mesh axis that splits parameters; a mesh without one leaves all of them whole on purpose.
    """
    total = device = 0
    whole: dict[str, int] = {}
    indivisible: dict[str, int] = {}
    sizes = [mesh.shape[axis] for axis in (rules.weights, rules.hidden) if axis and mesh.shape[axis] > 1]
    placed = jax.tree.leaves(tree_shardings(tree, mesh, rules))
    for (path, leaf), ruled in zip(jax.tree.leaves_with_path(tree), placed, strict=True):
        size = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        own = getattr(leaf, "sharding", None)
        part = math.prod((own or ruled).shard_shape(tuple(leaf.shape))) * np.dtype(leaf.dtype).itemsize
        total, device = total + size, device + part
        if sizes and size > LARGE and part == size:
            divides = any(axis % n == 0 for axis in leaf.shape for n in sizes)
            (whole if divides else indivisible)[jax.tree_util.keystr(path, simple=True, separator="/")] = size
    return ShardingReport(total, device, whole, indivisible)


def state_shapes(spec: ModelSpec, optimiser: OptimiserConfig | None = None, frozen: tuple[str, ...] = ()) -> TrainState:
    """Shapes of all that stage 2 keeps of a model: parameters, their average, two moments each."""
    tx = (optimiser or OptimiserConfig()).build()
    return jax.eval_shape(lambda params: create_state(training_tree(spec, params, frozen), tx, frozen), param_shapes(spec))


def size_text(count: int) -> str:
    """Bytes for people to read."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
