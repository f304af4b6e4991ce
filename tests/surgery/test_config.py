"""Edits as configs and the command line give them."""

import pytest

from graftax.errors import BadInput
from graftax.surgery.config import GraftConfig
from graftax.testing import tiny_spec


def test_edits_run_in_order_and_must_fit():
    config = GraftConfig(edits=("blocks[3].mixer=hyena_x", "drop(0)", "parallel_pairs(1)"))
    expected = "compose(replace(blocks[3].mixer, hyena_x(kernel=4), init=random), drop(0), parallel_pairs(1))"
    assert str(config.edit) == expected
    assert config.edit.on(tiny_spec()).depth == 3
    with pytest.raises(BadInput, match="expected an even number"):
        GraftConfig(edits=("drop(0)", "parallel_pairs()")).edit.on(tiny_spec())


@pytest.mark.parametrize(
    "text",
    ["drop(x)", "drop(1.5)", "skip(a, 2)", "parallel_pairs(a)", "tie(1)", "drop 3", "fold(1)", "", "blocks[1].mixer",
     "drop(1"],
)  # fmt: skip
def test_other_text_is_refused_when_the_config_is_built(text):
    with pytest.raises(BadInput):
        GraftConfig(edits=(text,))


def test_there_must_be_edits():
    with pytest.raises(BadInput, match="no edits"):
        GraftConfig().edit  # noqa: B018
    with pytest.raises(BadInput, match="calibration: got 0"):
        GraftConfig(calibration=0)
