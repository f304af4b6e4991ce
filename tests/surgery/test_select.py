"""Selectors: exact sites on 28 blocks, and refusals."""

import numpy as np
import pytest

from graftax.backbones.dit import variant
from graftax.errors import BadInput
from graftax.spec import op
from graftax.surgery.select import Site, all_sites, compact, ranges, select
from graftax.testing import tiny_spec

XL = variant("DiT-XL/2")
THREE_QUARTERS = [1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19, 21, 22, 23, 25, 26, 27]


@pytest.mark.parametrize(
    ("items", "blocks"),
    [
        ("*", range(28)),
        ("100%", range(28)),
        ("50%", [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27]),
        ("1::2", [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27]),
        ("75%", THREE_QUARTERS),
        ("deep:50%", range(14, 28)),
        ("deep:25%", range(21, 28)),
        ("top:50%", range(14)),
        ("top:12.5%", range(4)),  # 3.5 blocks: halves go up
        ("3", [3]),
        ("-1", [27]),
        ("-28", [0]),
        ("-3:", [25, 26, 27]),
        (":4", range(4)),
        ("28:24:-1", [25, 26, 27]),
        ("0:28:9", [0, 9, 18, 27]),
        ("6, 16 ,27", [6, 16, 27]),
        ("5,1,3,1", [1, 3, 5]),
        ("0,26:,top:4%", [0, 26, 27]),
    ],
)
def test_blocks_of_28(items, blocks):
    for slot in ("mixer", "mlp"):
        assert select(f"blocks[{items}].{slot}", XL) == tuple(Site(i, slot) for i in blocks)


def test_shares_on_an_odd_depth():
    spec = tiny_spec(depth=5)
    assert [site.block for site in select("blocks[50%].mixer", spec)] == [1, 3]
    assert [site.block for site in select("blocks[75%].mixer", spec)] == [1, 2, 3]
    assert [site.block for site in select("blocks[deep:50%].mixer", spec)] == [2, 3, 4]


def test_kinds_select_what_a_slot_holds():
    blocks = list(XL.blocks)
    for i in (2, 9):
        blocks[i] = blocks[i].with_op("mixer", op("swa", window=4))
    spec = XL.replace(blocks=tuple(blocks))
    assert [site.block for site in select("blocks[swa].mixer", spec)] == [2, 9]
    assert [site.block for site in select("blocks[mha].mixer", spec)] == [i for i in range(28) if i not in (2, 9)]


@pytest.mark.parametrize(
    ("selector", "slots"),
    [
        ("blocks[3].norm", ["norm1", "norm2"]), ("blocks[3].modulation", ["adaln"]), ("blocks[3].channel", ["mlp"]),
        ("blocks[3].norm2", ["norm2"]), ("dit[3].mixer", ["mixer"]),
    ],
)  # fmt: skip
def test_slots_are_named_by_role_and_blocks_by_kind(selector, slots):
    assert select(selector, XL) == tuple(Site(3, slot) for slot in slots)


def test_all_sites():
    spec = tiny_spec(depth=2)
    assert all_sites(spec) == tuple(Site(i, slot) for i in (0, 1) for slot in ("adaln", "norm1", "mixer", "norm2", "mlp"))
    assert all_sites(spec, "norm", "channel") == tuple(Site(i, slot) for i in (0, 1) for slot in ("norm1", "norm2", "mlp"))


def test_lists_are_sorted_unions():
    expected = (Site(1, "mixer"), Site(2, "mlp"), Site(3, "mixer"), Site(3, "mlp"))
    given = ["blocks[3,2].mlp", "blocks[1:4:2].mixer", "blocks[3].mixer", Site(2, "mlp")]
    assert select(given, XL) == select(iter(given), XL) == select(map(str, expected), XL) == expected


def test_numbers_take_the_given_slot():
    assert select([3, np.int64(1), -1], XL, "channel") == (Site(1, "mlp"), Site(3, "mlp"), Site(27, "mlp"))
    assert select(0, XL, "mixer") == (Site(0, "mixer"),)
    with pytest.raises(BadInput, match="selector 3 on 28 blocks: not a selector"):
        select([3], XL)


def test_a_site_prints_as_its_selector():
    assert str(Site(3, "mixer")) == "blocks[3].mixer"
    assert Site(3, "mixer").path(XL) == "blocks/03/mixer"
    assert Site(3, "mixer").held(XL) == op("mha")
    assert select(str(Site(3, "mixer")), XL) == (Site(3, "mixer"),)


@pytest.mark.parametrize(
    ("selector", "reason"),
    [
        ("blocks[28].mixer", "'28' selects no block"),
        ("blocks[-29].mixer", "'-29' selects no block"),
        ("blocks[1:29].mixer", "slice bound 29 is out of range"),
        ("blocks[-29:].mixer", "slice bound -29 is out of range"),
        ("blocks[5:5].mixer", "'5:5' selects no block"),
        ("blocks[::0].mixer", "step 0"),
        ("blocks[1,].mixer", "'' selects no block"),
        ("blocks[].mixer", "'' selects no block"),
        ("blocks[hyena_x].mixer", "'hyena_x' selects no block"),
        ("blocks[mlp].mixer", "'mlp' selects no block"),
        ("blocks[25%].mixer", "25% has no interleaving, only 50%, 75% and 100%"),
        ("blocks[101%].mixer", "101% is more than all"),
        ("blocks[deep:0%].mixer", "'deep:0%' selects no block"),
        ("blocks[top:1%].mixer", "'top:1%' selects no block"),
        ("blocks[middle:50%].mixer", "selects no block"),
        ("blocks[1].attn", "no such slot"),
        ("blocks[1]", "not a selector"),
        ("block[1].mixer", "no such kind of block"),
        ("blocks[1].mixer ", "not a selector"),
        ("", "not a selector"),
        (["blocks[1].mixer", "blocks[40].mlp"], "'40' selects no block"),
        ([1.5], "not a selector"),
        (None, "not a selector"),
        ([], "empty"),
    ],
)
def test_impossible_selectors_are_refused(selector, reason):
    with pytest.raises(BadInput) as error:
        select(selector, XL)
    message = str(error.value)
    assert reason in message
    assert "\n" not in message
    if selector != []:
        culprit = selector[-1] if isinstance(selector, list) else selector
        assert repr(culprit) in message
        assert "28 blocks" in message
        assert "0..27" in message


@pytest.mark.parametrize(
    "blocks", [(3,), (3, 4), (0, 1, 2), (1, 3, 5), (0, 1, 2, 7, 8), tuple(THREE_QUARTERS), tuple(range(28))]
)
def test_compact_is_read_back(blocks):
    assert tuple(site.block for site in select(f"blocks[{compact(blocks)}].mixer", XL)) == blocks


def test_compact_is_short():
    assert compact((1, 3, 5, 7)) == "1:8:2"
    assert compact((0, 1, 2, 7)) == "0:3,7"
    assert ranges((5, 4, 3)) == "5,4,3"
    assert ranges((3, 3, 3)) == "3,3,3"
