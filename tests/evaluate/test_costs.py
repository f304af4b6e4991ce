"""The cost table: every figure that the grafting paper prints in its Table 4 for DiT-XL/2, to the printed digit."""

import pytest

from graftax.backbones.dit import variant
from graftax.errors import BadInput
from graftax.evaluate.costs import MISPRINT, SHARES, TESTBED, cost_table
from graftax.models.cost import flops
from graftax.spec import op
from graftax.testing import tiny_spec

# Operator: change of operator FLOPs in percent at 50, 75 and 100 %.
OPERATOR = {
    "hyena_se": ("-49.52", "-74.27", "-99.03"),
    "hyena_x": ("-49.90", "-74.85", "-99.81"),
    "hyena_y": ("-49.52", "-74.27", "-99.03"),
    "swa": ("-48.24", "-72.36", "-96.48"),
    "mamba2": ("-37.59", "-56.38", "-75.17"),
    "mlp(ratio=3.0)": ("-12.50", "-18.75", "-25.00"),
    "mlp(ratio=6.0)": ("+25.00", "+37.50", "+50.00"),
}
# Operator: change of featurizer FLOPs and of parameters at 100 %.
FULL = {
    "hyena_se": ("+0.26", "+0.43"),
    "hyena_x": ("+0.26", "+0.33"),
    "hyena_y": ("+0.00", "+0.11"),
    "swa": ("+0.00", "+0.00"),
}


def label(operator):
    return str(operator) if operator.kind == "mlp" else operator.kind


@pytest.fixture(scope="module")
def table():
    return {(label(row.operator), row.percent): row for row in cost_table(variant("DiT-XL/2"))}


def test_the_testbed_is_the_papers(table):
    kinds = ["hyena_se", "hyena_x", "hyena_y", "swa", "mamba2", "mlp(ratio=3.0)", "mlp(ratio=6.0)", "mlp_hyena_x"]
    assert [label(operator) for operator in TESTBED] == kinds
    assert list(table) == [(kind, share) for kind in kinds for share in SHARES]


def test_operators(table):
    assert {kind: tuple(f"{table[kind, share].op_flops:+.2f}" for share in SHARES) for kind in OPERATOR} == OPERATOR
    assert f"{table['mlp_hyena_x', 100].op_flops:+.2f}" == "+0.02"


def test_featurizers_and_parameters(table):
    rows = {kind: table[kind, 100] for kind in FULL}
    assert {kind: (f"{row.featurizer_flops:+.2f}", f"{row.params:+.2f}") for kind, row in rows.items()} == FULL
    assert [f"{table['mamba2', share].params:+.2f}" for share in SHARES] == ["+28.02", "+42.04", "+56.05"]
    assert f"{table['mlp_hyena_x', 100].params:+.2f}" == "+0.03"
    assert f"{table['mlp(ratio=3.0)', 100].params:+.2f}" == "-25.00"
    assert f"{table['mlp(ratio=6.0)', 100].params:+.0f}" == "+50"
    assert all((row.featurizer_flops is None) == kind.startswith("mlp") for (kind, _), row in table.items())


def test_the_one_figure_that_differs(table):
    """The paper prints +77.89, +116.83, +155.77."""
    assert [f"{table['mamba2', share].featurizer_flops:+.2f}" for share in SHARES] == ["+28.04", "+42.06", "+56.09"]
    assert "+155.77" in MISPRINT


def test_the_whole_model(table):
    spec = variant("DiT-XL/2")
    block = 8 * 256 * 1152**2  # half of a ratio-4 MLP's FLOPs
    assert table["mlp(ratio=6.0)", 100].model_flops == pytest.approx(100 * 28 * block / flops(spec))


def test_a_model_of_another_size():
    rows = {label(row.operator): row for row in cost_table(tiny_spec()) if row.percent == 100}
    assert rows["mlp(ratio=3.0)"].op_flops == pytest.approx(-25)
    with pytest.raises(BadInput, match="headdim"):
        cost_table(tiny_spec(hidden_size=36))


def test_a_grafted_model_is_compared_with_itself():
    spec = tiny_spec(mixer=op("swa", window=4))
    rows = {label(row.operator): row for row in cost_table(spec) if row.percent == 100}
    assert rows["swa"].op_flops == rows["swa"].model_flops == 0
