"""The choice of sites on harms that are given: least harm per FLOP, enough saved and no more, joint harm re-measured."""

import pytest

from graftax.analyze.search import SiteHarm, choose_sites, evaluate_sites, greedy_search, measure_sites, selectors
from graftax.errors import BadInput
from graftax.surgery import Site, select
from graftax.testing import tiny_spec

MIXERS = [Site(i, "mixer") for i in range(4)]
OWN = dict(zip(MIXERS, (0.4, 0.1, 0.3, 0.2), strict=True))
EQUAL = dict.fromkeys(MIXERS, 10)


def additive(sites):
    return sum(OWN[site] for site in sites)


def test_measures_each_site_alone():
    found = measure_sites(additive, EQUAL)
    assert found == tuple(SiteHarm(site, OWN[site], 10) for site in MIXERS)


@pytest.mark.parametrize(("saving", "blocks"), [(1, [1]), (10, [1]), (11, [1, 3]), (30, [1, 2, 3]), (40, [0, 1, 2, 3])])
def test_takes_the_least_harmful_until_enough_is_saved(saving, blocks):
    expected = tuple(Site(i, "mixer") for i in blocks)
    assert choose_sites(measure_sites(additive, EQUAL), saving) == expected
    choice = greedy_search(additive, EQUAL, saving)
    assert (choice.sites, choice.saved) == (expected, 10 * len(blocks))
    assert choice.harm == pytest.approx(additive(expected))
    assert choice == evaluate_sites(additive, EQUAL, expected)


def test_weighs_harm_against_flops():
    saved = {MIXERS[0]: 100, MIXERS[1]: 10, MIXERS[2]: 10, MIXERS[3]: -5}
    # Per FLOP: 0.004, 0.01, 0.03; block 3 saves nothing.
    assert choose_sites(measure_sites(additive, saved), 100) == (MIXERS[0],)
    assert choose_sites(measure_sites(additive, saved), 101) == (MIXERS[0], MIXERS[1])
    assert greedy_search(additive, saved, 115).sites == tuple(MIXERS[:3])


def test_leaves_out_what_a_larger_site_makes_superfluous():
    saved = {MIXERS[1]: 10, MIXERS[0]: 30}
    # Block 1 comes first by harm per FLOP (0.01 against 0.013), and block 0 alone would do.
    assert choose_sites(measure_sites(additive, saved), 25) == (MIXERS[0],)
    assert greedy_search(additive, saved, 25).sites == (MIXERS[0],)


def test_greedy_search_sees_what_single_sites_hide():
    """Blocks 1 and 3 are harmless alone and ruinous together."""
    joint = lambda sites: additive(sites) + (5 if {MIXERS[1], MIXERS[3]} <= set(sites) else 0)  # noqa: E731
    assert choose_sites(measure_sites(joint, EQUAL), 20) == (MIXERS[1], MIXERS[3])
    choice = greedy_search(joint, EQUAL, 20)
    assert choice.sites == (MIXERS[1], MIXERS[2])
    assert choice.harm == pytest.approx(0.4)


def test_selectors_name_the_sites():
    sites = [*(Site(i, "mixer") for i in (3, 1, 0)), Site(2, "mlp")]
    texts = selectors(sites)
    assert texts == ("blocks[0,1,3].mixer", "blocks[2].mlp")
    assert select(texts, tiny_spec()) == tuple(sorted(sites))
    assert evaluate_sites(additive, EQUAL, MIXERS[1::2]).selectors == ("blocks[1,3].mixer",)


@pytest.mark.parametrize("saving", [0, 41])
def test_refuses_what_cannot_be_saved(saving):
    for choose in (
        lambda: choose_sites(measure_sites(additive, EQUAL), saving),
        lambda: greedy_search(additive, EQUAL, saving),
    ):
        with pytest.raises(BadInput, match=f"got {saving} FLOPs per image, expected 1 to 40"):
            choose()
