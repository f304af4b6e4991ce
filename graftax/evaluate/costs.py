"""What grafts cost: the change of parameters and FLOPs for every operator of the paper at every share of blocks."""

from __future__ import annotations

from dataclasses import dataclass

from graftax import ops
from graftax.backbones.dit.zoo import ZOO
from graftax.models.cost import flops, slot_cost
from graftax.spec import ModelSpec, OpSpec
from graftax.surgery import replace, select

SHARES = (50, 75, 100)
TESTBED = tuple(dict.fromkeys(entry.operator for entry in ZOO.values() if entry.operator and entry.percent < 100))
"""The paper's replacements (its Table 3): the operators of the published models without self-grafting."""

MISPRINT = (
    "Mamba-2's featurizers: the paper's Table 4 prints +77.89, +116.83 and +155.77 % at 50, 75 and 100 %. The shapes of the "
    "published weights give the figures above, 1.56 times the original at 100 %: probably a ratio printed as a change."
)


@dataclass(frozen=True)
class CostChange:
    """What a graft changes, in percent.

    Attributes:
        operator: what is grafted.
        percent: of the blocks.
        op_flops: relative to the same slot of all blocks before, as in the paper's Table 4.
        featurizer_flops: likewise; None in channel mixers, which the paper does not split.
        params: likewise.
        model_flops: relative to one forward pass of the whole model.
    """

    operator: OpSpec
    percent: int
    op_flops: float
    featurizer_flops: float | None
    params: float
    model_flops: float


def cost_table(spec: ModelSpec) -> list[CostChange]:
    """Every operator of `TESTBED` grafted into 50, 75 and 100 % of the blocks of `spec` (grafting paper, Table 4).

    Raises `BadInput` where an operator is impossible at this size.
    """
    return [_change(spec, operator, percent) for operator in TESTBED for percent in SHARES]


def _change(spec: ModelSpec, operator: OpSpec, percent: int) -> CostChange:
    sites = select(f"blocks[{percent}%].{ops.operator_class(operator.kind).role}", spec)
    grafted, slot = replace(sites, operator).on(spec), sites[0].slot
    scion = sites[0].held(grafted)
    before, after = slot_cost(spec, slot), slot_cost(grafted, slot)
    return CostChange(
        scion, percent, _percent(before.op_flops, after.op_flops),
        _percent(before.featurizer_flops, after.featurizer_flops) if before.featurizer_flops else None,
        _percent(before.params, after.params), _percent(flops(spec), flops(grafted)),
    )  # fmt: skip


def _percent(before: int, after: int) -> float:
    return 100 * (after / before - 1)
