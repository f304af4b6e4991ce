"""Blocks in two arrangements of the same weights: plain, one subtree per block, and collected, stacked by operator.

A plain tree is what people read and save: `blocks["07"]["mixer"]["qkv"]["kernel"]`. Training keeps its state collected,
`blocks["dit"]["mixer"]["0_mha"]["qkv"]["kernel"]` with a leading axis over the blocks of this kind that hold this operator
there: a DiT of 28 blocks then has a tenth of the leaves, and the compiled optimiser step a tenth of the code. The block
stack runs either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax.blocks import part
from graftax.ops.base import Params
from graftax.spec import ModelSpec, OpSpec, members

Place = tuple[str, str, OpSpec]
"""Block kind, slot, operator: what is stacked together."""


def places(spec: ModelSpec) -> dict[Place, list[int]]:
    """Everything that blocks of `spec` hold, and the blocks that hold it, in order of appearance."""
    held = [(i, (block.kind, slot, op)) for i, block in enumerate(spec.blocks) for slot, op in block.ops]
    return {place: [held[k][0] for k in where] for place, where in members(place for _, place in held).items()}


def collect(spec: ModelSpec, params: Params) -> Params:
    """`params` with its plain blocks collected, everything else untouched.

    blocks: {block kind: {slot: {"0_mha": leaves (blocks that hold it, ...)}}}; operators without parameters are left out.
    """
    plain, blocks = params["blocks"], {}
    for (kind, slot, op), ids in places(spec).items():
        weights = [part(plain[spec.block_key(i)], slot) for i in ids]
        if weights[0]:
            _put(blocks, (kind, *slot.split("/"), _name(spec, kind, slot, op)), stack(weights))
    return {**params, "blocks": blocks}


def spread(spec: ModelSpec, params: Params) -> Params:
    """Inverse of `collect`; a plain tree is returned as it is."""
    if not is_collected(params["blocks"]):
        return params
    blocks: Params = {}
    for i, block in enumerate(spec.blocks):
        one = one_block(spec, params["blocks"], i)
        blocks[spec.block_key(i)] = {}
        for slot in block.slots:
            if one[slot]:
                _put(blocks[spec.block_key(i)], tuple(slot.split("/")), one[slot])
    return {**params, "blocks": blocks}


def is_collected(blocks: Mapping[str, Any]) -> bool:
    """Whether `params["blocks"]` is collected."""
    return not next(iter(blocks)).isdigit()


def one_block(spec: ModelSpec, blocks: Params, index: int) -> dict[str, Params]:
    """The weights of one block by slot, from either arrangement; {} for operators without any."""
    if not is_collected(blocks):
        return {slot: part(blocks[spec.block_key(index)], slot) for slot in spec.blocks[index].slots}
    rows = {slot: stacked(spec, blocks, slot, [index]) for slot in spec.blocks[index].slots}
    return jax.tree.map(lambda leaf: leaf[0], rows)


def stacked(spec: ModelSpec, blocks: Params, slot: str, ids: Sequence[int]) -> Params:
    """The weights in one slot of blocks of one kind that hold the same operator there: leaves (ids, ...)."""
    if not is_collected(blocks):
        return stack(part(blocks[spec.block_key(i)], slot) for i in ids)
    kind, op = spec.blocks[ids[0]].kind, spec.blocks[ids[0]][slot]
    tree = part(blocks.get(kind, {}), slot).get(_name(spec, kind, slot, op), {})
    holders = places(spec)[kind, slot, op]
    return _rows(tree, [holders.index(i) for i in ids])


def stack(trees: Iterable[Any]) -> Any:
    """Trees of one structure as one, leaves (trees, ...)."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _name(spec: ModelSpec, kind: str, slot: str, op: OpSpec) -> str:
    """The operator's name among those of its slot, "0_mha"."""
    rivals = [other for k, s, other in places(spec) if (k, s) == (kind, slot)]
    return f"{rivals.index(op)}_{op.kind}"


def _put(tree: Params, path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _rows(tree: Params, rows: Sequence[int]) -> Params:
    """Some rows of every leaf; a slice where they are evenly spaced, for its backward pass is a pad and no scatter."""
    steps = set(np.diff(rows).tolist())
    if len(steps) <= 1 and min(steps, default=1) > 0:
        index: Any = slice(rows[0], rows[-1] + 1, min(steps, default=1))
    else:
        index = np.array(rows)
    return jax.tree.map(lambda leaf: leaf[index], tree)
