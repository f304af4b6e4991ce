"""Edits of depth: pairs of blocks in parallel with a learned merge, blocks left out, blocks that share weights.

Unlike the rewrites of `graftax.surgery.program` these change the parameters: projections come in, blocks go for good and
those that stay are numbered anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence

import jax

from graftax.errors import BadInput
from graftax.models.merge import mean_merge
from graftax.models.stack import Params
from graftax.spec import ModelSpec, Step, block_key, merge_key
from graftax.surgery.edits import Edit, Result
from graftax.surgery.report import compare, is_plain

Program = tuple[Step, ...]


def parallel_pairs(lo: int = 0, hi: int | None = None) -> Edit:
    """Run positions lo and lo + 1 of the program on one input, lo + 2 and lo + 3, and so on up to `hi` (None: the end).

    Each pair's outputs, concatenated, go through a projection of its own (2 width -> width), which starts as their mean:
    half the change that the two blocks made one after the other. `graftax.distill` fits it to that change and then trains
    the pairs. Halves the depth; DiT-XL/2 goes from 675.1 to 712.3 M parameters. Source: the parallel blocks of the
    grafting paper (arXiv 2506.05340). Raises `BadInput`, when it runs, on spans that are no whole number of pairs, on
    positions that are parallel or looped already, and on a pair that has a projection elsewhere.
    """
    text = f"parallel_pairs({', '.join(map(str, [lo] * bool(lo or hi is not None) + [hi] * (hi is not None)))})"

    def run(spec: ModelSpec, params: Params, rng: jax.Array) -> Result:
        steps = _pairs(text, spec, lo, len(spec.program) if hi is None else hi)
        program = spec.program[:lo] + steps + spec.program[lo + 2 * len(steps) :]
        fresh = {merge_key(step.blocks): mean_merge(2, spec.hidden_size) for step in steps}
        after = spec.replace(program=program), {**params, "merges": {**params.get("merges", {}), **fresh}}
        return *after, compare((spec, params), after)

    return Edit(text, run)


def drop(*blocks: int) -> Edit:
    """Take blocks out of the model, parameters and all; the others move up and the program goes on without them.

    Parallel steps lose these blocks; what their merge does with the others stays. Raises `BadInput`, when it runs, if
    nothing would be left to run, on blocks that do not exist, on blocks of a step with a learned projection, and on models
    with adapters.
    """
    text = f"drop({', '.join(map(str, blocks))})"

    def run(spec: ModelSpec, params: Params, rng: jax.Array) -> Result:
        _check(text, spec, blocks)
        left = [tuple(i for i in step.blocks if i not in blocks) for step in spec.program]
        program = tuple(dataclasses.replace(s, blocks=ids) for s, ids in zip(spec.program, left, strict=True) if ids)
        if not program:
            raise BadInput(f"{text}: leaves no block to run, expected at least one")
        return _without(spec, params, program, blocks)

    return Edit(text, run)


def tie(*groups: Sequence[int]) -> Edit:
    """Let the blocks of each group share the weights of its first, which runs in place of the others: `tie((3, 4, 5))`.

    The others are taken out, and what stays is numbered anew. Raises `BadInput`, when it runs, on groups of fewer than two
    blocks, on blocks in two groups or that do not exist, on blocks of a step with a learned projection, and on models with
    adapters.
    """
    text = f"tie({', '.join(str(tuple(group)) for group in groups)})"
    stands_for = {block: group[0] for group in groups for block in group}

    def run(spec: ModelSpec, params: Params, rng: jax.Array) -> Result:
        if any(len(group) < 2 for group in groups) or sum(map(len, groups)) != len(stands_for):
            raise BadInput(f"{text}: expected groups of two or more blocks, each block in one group")
        _check(text, spec, tuple(stands_for))
        ids = [tuple(stands_for.get(i, i) for i in step.blocks) for step in spec.program]
        program = tuple(dataclasses.replace(step, blocks=b) for step, b in zip(spec.program, ids, strict=True))
        return _without(spec, params, program, [block for block, first in stands_for.items() if block != first])

    return Edit(text, run)


def _pairs(text: str, spec: ModelSpec, lo: int, hi: int) -> Program:
    steps = spec.program[lo:hi]
    if not 0 <= lo < hi <= len(spec.program) or len(steps) % 2:
        raise BadInput(f"{text}: positions [{lo}, {hi}) of {len(spec.program)}, expected an even number of steps inside")
    if nested := [step for step in steps if not is_plain(step)]:
        raise BadInput(f"{text}: {nested[0]} is parallel, looped or scaled already, expected plain blocks")
    pairs = [(first.blocks[0], second.blocks[0]) for first, second in zip(steps[::2], steps[1::2], strict=True)]
    if taken := [pair for pair in pairs if pair in spec.merges or pairs.count(pair) > 1]:
        raise BadInput(f"{text}: blocks {taken[0]} would run as a pair twice, expected each pair once")
    return tuple(Step(pair, "project") for pair in pairs)


def _check(text: str, spec: ModelSpec, blocks: Collection[int]) -> None:
    if not blocks:
        raise BadInput(f"{text}: got no blocks, expected at least one")
    if outside := [i for i in blocks if not 0 <= i < spec.depth]:
        raise BadInput(f"{text}: block {outside[0]}, expected 0..{spec.depth - 1}")
    if merged := [ids for ids in spec.merges if set(ids) & set(blocks)]:
        raise BadInput(f"{text}: blocks {merged[0]} share a learned projection, expected blocks outside of such steps")
    if spec.adapters:
        raise BadInput(f"{text}: the model has adapters, expected merge_lora() first")


def _without(spec: ModelSpec, params: Params, program: Program, gone: Collection[int]) -> Result:
    """The model without the blocks `gone`, which `program` (of the old numbers) does not run any more."""
    kept = tuple(i for i in range(spec.depth) if i not in gone)
    number: Callable[[int], int] = {old: new for new, old in enumerate(kept)}.__getitem__
    blocks = {block_key(number(i)): params["blocks"][block_key(i)] for i in kept}
    merges = {merge_key(tuple(map(number, ids))): params["merges"][merge_key(ids)] for ids in spec.merges}
    steps = tuple(dataclasses.replace(step, blocks=tuple(map(number, step.blocks))) for step in program)
    after = (
        spec.replace(blocks=tuple(spec.blocks[i] for i in kept), program=steps),
        {**params, "blocks": blocks, **({"merges": merges} if merges else {})},
    )
    return *after, compare((spec, params), after, origin=kept)
