"""What a model costs: parameters and forward FLOPs in closed form, from the spec alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from graftax import ops
from graftax.models.dit import param_shapes
from graftax.models.embed import FREQUENCIES
from graftax.models.lora import count_adapters
from graftax.ops import Cost
from graftax.spec import SLOTS, ModelSpec


def count_params(spec: ModelSpec) -> int:
    """All parameters, the fixed position table included (DiT-XL/2: 675,129,632)."""
    return count_trainable(spec) + spec.tokens * spec.hidden_size


def count_trainable(spec: ModelSpec) -> int:
    """Parameters that training changes: all but the position table (DiT-XL/2: 674,834,720)."""
    d, patch = spec.hidden_size, spec.patch_size**2
    embedders = _linear(patch * spec.in_channels, d) + _linear(FREQUENCIES, d) + _linear(d, d) + (spec.num_classes + 1) * d
    final = _linear(d, 2 * d) + _linear(d, patch * spec.out_channels)
    blocks = spec.depth * _linear(d, 6 * d) + sum(slot_cost(spec, slot).params for slot in SLOTS)
    merges = sum(_linear(len(ids) * d, d) for ids in spec.merges)
    adapters = count_adapters(spec.adapters, param_shapes(spec.replace(adapters=()))) if spec.adapters else 0
    return embedders + blocks + merges + final + adapters


def flops(spec: ModelSpec, *, head: bool = True) -> int:
    """FLOPs of one forward pass on one image, 2 per multiply-add, blocks counted as often as the program runs them.

    Matrix products, softmax, gates and convolutions count; norms, activations, residual sums and table look-ups do not,
    nor do adapters, folded into their kernels beforehand (DiT-XL/2 at 256 pixels: 237.3 G, twice the published 118.6 G
    multiply-adds). Without `head` the pass ends before the final layer.
    """
    d, n, patch = spec.hidden_size, spec.tokens, spec.patch_size**2
    ends = 2 * n * d * patch * (spec.in_channels + head * spec.out_channels)
    conditioning = 2 * d * (FREQUENCIES + d + head * 2 * d)  # timestep MLP and the final layer's adaLN
    adaln = len(runs(spec)) * 12 * d * d
    merges = sum(2 * n * len(step.blocks) * d * d * step.loops for step in spec.program if step.merge == "project")
    return ends + conditioning + adaln + merges + sum(slot_cost(spec, slot).flops for slot in SLOTS)


def train_flops(spec: ModelSpec) -> int:
    """Model FLOPs of one training step per image: 3 x forward, for the backward pass does each product twice, towards the
    inputs and towards the weights. What rematerialisation computes again, optimiser and averages are not counted."""
    return 3 * flops(spec)


def slot_cost(spec: ModelSpec, slot: str) -> Cost:
    """The operators of one slot, "mixer" or "mlp", over the whole model, split as in the grafting paper's Table 4.

    Parameters count once per block, FLOPs once per run of a block.
    """
    costs = [ops.build(getattr(block, slot), spec).cost() for block in spec.blocks]
    return Cost(
        sum(cost.params for cost in costs),
        sum(costs[i].op_flops for i in runs(spec)),
        sum(costs[i].featurizer_flops for i in runs(spec)),
    )


def block_cost(spec: ModelSpec, ids: Sequence[int]) -> tuple[int, int]:
    """Parameters of some blocks, and FLOPs per image of all runs of them: operators and adaLN, without adapters."""
    d, times = spec.hidden_size, Counter(runs(spec))
    costs = {i: [ops.build(getattr(spec.blocks[i], slot), spec).cost() for slot in SLOTS] for i in ids}
    return (
        sum(_linear(d, 6 * d) + sum(cost.params for cost in costs[i]) for i in ids),
        sum(times[i] * (12 * d * d + sum(cost.flops for cost in costs[i])) for i in ids),
    )


def runs(spec: ModelSpec) -> tuple[int, ...]:
    """Block ids in the order in which the program runs them, loops unrolled."""
    return tuple(i for step in spec.program for _ in range(step.loops) for i in step.blocks)


def _linear(fan_in: int, fan_out: int) -> int:
    return fan_in * fan_out + fan_out
