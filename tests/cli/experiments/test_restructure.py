"""Edits of depth as text."""

import pytest

from graftax.cli.experiments import stages
from graftax.cli.schema import GraftConfig
from graftax.errors import BadInput
from graftax.testing import tiny_spec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parallel_pairs()", "parallel_pairs()"),
        (" parallel_pairs( 0,4 ) ", "parallel_pairs(0, 4)"),
        ("drop(3,0)", "drop(3, 0)"),
        ("tie((0,1), (2, 3))", "tie((0, 1), (2, 3))"),
    ],
)
def test_edits_are_read(text, expected):
    config = GraftConfig(restructure=(text,))
    assert stages.parse_edit(config).text == expected
    stages.check_edit(config, tiny_spec())


@pytest.mark.parametrize("text", ["parallel_pairs(1, 2, 3)", "drop()", "drop(x)", "tie(1)", "drop 3", "fold(1)", "drop(03)"])
def test_other_text_is_refused(text):
    with pytest.raises(BadInput, match=r"restructure .*expected like parallel_pairs\(\)"):
        stages.parse_edit(GraftConfig(restructure=(text,)))


def test_edits_run_in_order_and_must_fit():
    config = GraftConfig(replace=("blocks[3].mixer=hyena_x",), restructure=("drop(0)", "parallel_pairs(1)"))
    assert stages.parse_edit(config).text.startswith("compose(replace(blocks[3].mixer")
    stages.check_edit(config, tiny_spec())
    with pytest.raises(BadInput, match="expected an even number"):
        stages.check_edit(GraftConfig(restructure=("drop(0)", "parallel_pairs()")), tiny_spec())
    narrower = {"resize": ("blocks[*].mlp=2",), "init": "transplant", "restructure": ("drop(3)",)}
    with pytest.raises(BadInput, match="looks at their neurons on data"):
        stages.check_edit(GraftConfig(**narrower), tiny_spec())
