"""The table of chips: found by name and by what jax calls them."""

import pytest

from graftax.errors import BadInput
from graftax.train.chips import CHIPS, chip_of, find_chip


@pytest.mark.parametrize(
    ("kind", "name"),
    [("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"), ("NVIDIA H200", "h200")],
)
def test_device_kinds(kind, name):
    assert chip_of(kind) is CHIPS[name] is find_chip(name)


def test_what_is_not_in_the_table():
    assert chip_of("cpu") is None
    with pytest.raises(BadInput, match="chip: got 'v9', expected one of v2, v3, v4, v5e"):
        find_chip("v9")


def test_kinds_belong_to_one_chip():
    kinds = [kind for chip in CHIPS.values() for kind in chip.kinds]
    assert len(set(kinds)) == len(kinds)


def test_numbers_are_of_one_chip():
    for chip in CHIPS.values():
        assert 1e13 < chip.flops < 1e16
        assert 10e9 < chip.hbm_bytes < 1e12
        assert 50 < chip.flops / chip.hbm_bandwidth < 1000  # FLOPs per byte where a roofline bends
