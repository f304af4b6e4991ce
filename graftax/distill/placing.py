"""How stage 1 lies on a mesh: the batch over its data axes, scions and their optimisers split like parameters."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from graftax.blocks import Context
from graftax.distill.teacher import Pairs, Teacher
from graftax.ops.base import Params
from graftax.train.loop import Batch
from graftax.train.sharding import RULES, AxisRules, activations, place_batch, put_tree, shard_tree, tree_shardings


def site_method(mesh: Mesh | None, rules: AxisRules = RULES) -> str:
    """How `over_sites` goes over the sites: one by one where weights are split over devices, as a site's weights are then
    gathered for its turn only, and never those of all sites together."""
    return "map" if mesh is not None and rules.weights and mesh.shape[rules.weights] > 1 else "auto"


def shard_teacher(source: Teacher, params: Params, mesh: Mesh | None, rules: AxisRules = RULES) -> Params:
    """The teacher's weights prepared and on their devices."""
    if mesh is None:
        return source.prepare(params)
    return shard_tree(source.prepare(shard_tree(params, mesh, rules)), mesh, rules)


def sample_pairs(
    source: Teacher, prepared: Params, batch: Batch, key: jax.Array, mesh: Mesh | None, rules: AxisRules = RULES
) -> tuple[Pairs, Context]:
    """Inside `jit`: `Teacher.sample_pairs` with the batch split over the mesh from beginning to end."""
    image, cond = place_batch((batch["image"], source.condition(batch)), mesh)
    with activations(mesh, rules):
        pairs, context = source.sample_pairs(prepared, image, cond, key)
        return place_batch(pairs, mesh, axis=1), place_batch(context, mesh)


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Inside `jit`: every leaf held whole on every device; without a mesh the tree as it is."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def stacked_shardings(tree: Any, mesh: Mesh, rules: AxisRules = RULES) -> Any:
    """Shardings of scions, their optimisers or their sums, all stacked over sites; that axis stays whole."""
    return tree_shardings(tree, mesh, rules, stacked=True)


def shard_stacked(tree: Any, mesh: Mesh | None, rules: AxisRules = RULES) -> Any:
    """Leaves at their `stacked_shardings`; without a mesh the tree as it is."""
    return tree if mesh is None else put_tree(tree, stacked_shardings(tree, mesh, rules))


def constrain_stacked(tree: Any, mesh: Mesh | None, rules: AxisRules = RULES) -> Any:
    """Inside `jit`: leaves held to their `stacked_shardings`; without a mesh the tree as it is."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, stacked_shardings(tree, mesh, rules))
