"""Text and tables of what is taken from earlier calls."""

import numpy as np
import pytest

from graftax.diffusion.reuse import FirstBlock, Table, chosen, parse_reuse
from graftax.errors import BadInput


@pytest.mark.parametrize("value", [FirstBlock(0.08), Table(((True,) * 5, (False, True, False, False, True)))])
def test_text_and_back(value):
    assert parse_reuse(str(value)) == value


@pytest.mark.parametrize("text", ["first_block(x)", "first_block(-1)", "table(4)", "table(4, 7)", "table(4, f, 1f)", "all"])
def test_other_text_is_refused_in_one_line(text):
    with pytest.raises(BadInput, match="reuse: ") as found:
        parse_reuse(text)
    assert "\n" not in str(found.value)


def test_nothing_is_no_reuse():
    assert parse_reuse("") is None


def errors(calls=12, longest=3, positions=4):
    """Position p drifts with rate p + 1: the longer ago, the further."""
    ages = np.arange(1, longest + 1)[:, None] * np.arange(1, positions + 1) * 0.01
    found = np.broadcast_to(ages, (calls, longest, positions)).copy()
    for call in range(min(calls, longest)):
        found[call, call:] = np.nan
    return found


def test_what_drifts_least_is_taken_most():
    table = np.array(chosen(errors(), 0.6).computed)
    assert table.mean() <= 0.6
    assert table[0].all()
    assert (np.diff(table.sum(0)) >= 0).all()
    assert table[:, 0].sum() < table[:, -1].sum()


def test_no_change_is_taken_for_longer_than_measured():
    with pytest.raises(BadInput, match=r"share: got 0.1, expected 0.250 or more: changes are taken 3 times at most"):
        chosen(errors(), 0.1)
    for column in np.array(chosen(errors(), 0.25).computed).T:
        assert np.diff(np.flatnonzero(column)).max() == 4


def test_everything_is_computed_where_all_may_be():
    assert chosen(errors(), 1.0).share == 1


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_shares_that_are_none(share):
    with pytest.raises(BadInput, match="share: got"):
        chosen(errors(), share)
