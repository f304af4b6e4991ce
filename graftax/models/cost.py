"""What a model costs: parameters and forward FLOPs in closed form, from the spec alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from graftax.blocks import build, streams
from graftax.models.backbone import find
from graftax.models.lora import count_adapters
from graftax.models.network import param_shapes
from graftax.models.policy import PLAIN, Policy
from graftax.models.routing import on_tokens
from graftax.models.shared import shared_parts
from graftax.models.stack import runs
from graftax.ops import Cost
from graftax.ops.modulation import linear_cost
from graftax.spec import BlockSpec, ModelSpec


def count_params(spec: ModelSpec) -> int:
    """All parameters, fixed tables of positions included (DiT-XL/2: 675,129,632)."""
    return count_trainable(spec) + find(spec).cost(spec).fixed


def count_trainable(spec: ModelSpec) -> int:
    """Parameters that training changes: all but fixed tables of positions (DiT-XL/2: 674,834,720)."""
    blocks = sum(operator_cost(spec, block, slot).params for block in spec.blocks for slot in block.slots)
    shared = sum(linear_cost(spec.width, part.features).params for part in shared_parts(spec).values())
    merges = sum(len(streams(spec)) * _linear(len(ids) * spec.width, spec.width) for ids in spec.merges)
    adapters = count_adapters(spec.adapters, param_shapes(spec.replace(adapters=()))) if spec.adapters else 0
    return find(spec).cost(spec).trained + blocks + shared + merges + adapters


def flops(spec: ModelSpec, *, head: bool = True, policy: Policy = PLAIN) -> int:
    """FLOPs of one forward pass on one image, 2 per multiply-add, blocks counted as often as the program runs them.

    Matrix products, softmax, gates and convolutions count; norms, activations, residual sums and table look-ups do not,
    nor do adapters, folded into their kernels beforehand (DiT-XL/2 at 256 pixels: 237.3 G, twice the published 118.6 G
    multiply-adds). Without `head` the pass ends before the final layer. What a `policy` leaves out does not count, of blocks
    that are dropped by chance their share on average.
    """
    frame = find(spec).cost(spec)
    steps = sum(round(_step_flops(spec, policy, at)) for at in range(len(spec.program)))
    shared = sum(linear_cost(spec.width, part.features).flops for part in shared_parts(spec).values())
    return frame.embed + head * frame.head + steps + shared


def _step_flops(spec: ModelSpec, policy: Policy, position: int) -> float:
    """Of a step of the program, all its loops."""
    step, route = spec.program[position], policy.at(position)
    there = spec if route is None else on_tokens(spec, route.kept(spec.tokens))
    blocks = sum(operator_cost(there, spec.blocks[i], slot).flops for i in step.blocks for slot in spec.blocks[i].slots)
    merge = merge_flops(there, len(step.blocks)) if step.merge == "project" else 0
    return step.loops * (policy.share(position, len(spec.program)) * blocks + merge)


def train_flops(spec: ModelSpec, policy: Policy = PLAIN) -> int:
    """Model FLOPs of one training step per image: 3 x forward, for the backward pass does each product twice, towards the
    inputs and towards the weights. What rematerialisation computes again, optimiser and averages are not counted."""
    return 3 * flops(spec, policy=policy)


def operator_cost(spec: ModelSpec, block: BlockSpec, slot: str) -> Cost:
    """The operator in one slot of a block."""
    return build(spec, block.kind, slot, block[slot]).cost()


def slot_cost(spec: ModelSpec, slot: str) -> Cost:
    """The operators of one slot over the whole model, split as in the grafting paper's Table 4.

    Parameters count once per block, FLOPs once per run of a block.
    """
    costs = {i: operator_cost(spec, block, slot) for i, block in enumerate(spec.blocks) if slot in block.slots}
    return Cost(
        sum(cost.params for cost in costs.values()),
        sum(costs[i].op_flops for i in runs(spec) if i in costs),
        sum(costs[i].featurizer_flops for i in runs(spec) if i in costs),
    )


def block_cost(spec: ModelSpec, ids: Sequence[int]) -> tuple[int, int]:
    """Parameters of some blocks, and FLOPs per image of all runs of them: operators alone, without adapters."""
    times = Counter(runs(spec))
    costs = {i: [operator_cost(spec, spec.blocks[i], slot) for slot in spec.blocks[i].slots] for i in ids}
    return (
        sum(cost.params for i in ids for cost in costs[i]),
        sum(times[i] * cost.flops for i in ids for cost in costs[i]),
    )


def merge_flops(spec: ModelSpec, count: int) -> int:
    """FLOPs per image of one learned projection of `count` outputs."""
    tokens = sum(spec.sizes.text if stream == "txt" else spec.sizes.image for stream in streams(spec))
    return 2 * tokens * count * spec.width**2


def _linear(fan_in: int, fan_out: int) -> int:
    return fan_in * fan_out + fan_out
