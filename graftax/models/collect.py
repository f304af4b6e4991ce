"""Blocks in two arrangements of the same weights: plain, one subtree per block, and collected, stacked by operator.

A plain tree is what people read and save: `blocks["07"]["mixer"]["qkv"]["kernel"]`. Training keeps its state collected,
`blocks["mixer"]["0_mha"]["qkv"]["kernel"]` with a leading axis over the blocks that hold this operator: a DiT of 28 blocks
then has a tenth of the leaves, and the compiled optimiser step a tenth of the code. The block stack runs either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax.spec import SLOTS, ModelSpec, OpSpec, block_key

Params = dict[str, Any]
ADALN = "adaln"


def collect(spec: ModelSpec, params: Params) -> Params:
    """`params` with its plain blocks collected, everything else untouched.

    blocks: {"adaln": leaves (depth, ...), "mixer" and "mlp": {kind: leaves (blocks of that kind, ...)}}.
    """
    plain = params["blocks"]
    blocks: Params = {ADALN: _stack(plain[block_key(i)][ADALN] for i in range(spec.depth))}
    for slot in SLOTS:
        blocks[slot] = {name: _stack(plain[block_key(i)][slot] for i in ids) for name, ids in _members(spec, slot).items()}
    return {**params, "blocks": blocks}


def spread(spec: ModelSpec, params: Params) -> Params:
    """Inverse of `collect`; a plain tree is returned as it is."""
    if not is_collected(params["blocks"]):
        return params
    blocks = {block_key(i): one_block(spec, params["blocks"], i) for i in range(spec.depth)}
    return {**params, "blocks": blocks}


def is_collected(blocks: Mapping[str, Any]) -> bool:
    """Whether `params["blocks"]` is collected."""
    return ADALN in blocks


def one_block(spec: ModelSpec, blocks: Params, index: int) -> Params:
    """The weights of one block, {"adaln", "mixer", "mlp"}, from either arrangement."""
    if not is_collected(blocks):
        return blocks[block_key(index)]
    return jax.tree.map(lambda leaf: leaf[0], {part: stacked(spec, blocks, part, [index]) for part in (ADALN, *SLOTS)})


def stacked(spec: ModelSpec, blocks: Params, part: str, ids: Sequence[int]) -> Params:
    """The weights of one part ("adaln", "mixer", "mlp") of blocks that hold the same operator there: leaves (ids, ...)."""
    if not is_collected(blocks):
        return _stack(blocks[block_key(i)][part] for i in ids)
    if part == ADALN:
        return _rows(blocks[ADALN], ids)
    name, members = next((n, m) for n, m in _members(spec, part).items() if ids[0] in m)
    return _rows(blocks[part][name], [members.index(i) for i in ids])


def _members(spec: ModelSpec, slot: str) -> dict[str, list[int]]:
    """The operators of a slot in order of appearance, "0_mha", and the blocks that hold each."""
    found: dict[OpSpec, list[int]] = {}
    for i, block in enumerate(spec.blocks):
        found.setdefault(getattr(block, slot), []).append(i)
    return {f"{k}_{op.kind}": ids for k, (op, ids) in enumerate(found.items())}


def _stack(trees: Iterable[Params]) -> Params:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _rows(tree: Params, rows: Sequence[int]) -> Params:
    """Some rows of every leaf; a slice where they are evenly spaced, for its backward pass is a pad and no scatter."""
    steps = set(np.diff(rows).tolist())
    if len(steps) <= 1 and min(steps, default=1) > 0:
        index: Any = slice(rows[0], rows[-1] + 1, min(steps, default=1))
    else:
        index = np.array(rows)
    return jax.tree.map(lambda leaf: leaf[index], tree)
