"""The choice of sites: on harms that are given, least harm per FLOP, enough saved and no more, joint harm re-measured; the
whole search on a model."""

import jax
import pytest
from tiny_graft import batch, student, teacher

from graftax import parse
from graftax.analyze.harm import Harm
from graftax.analyze.search import (
    SiteHarm,
    choose_sites,
    evaluate_sites,
    greedy_search,
    measure_sites,
    search,
    selectors,
)
from graftax.errors import BadInput
from graftax.models.cost import flops
from graftax.surgery import Site, compose, graft, replace, select
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


# --- On a model ----------------------------------------------------------------------------------------------------------

HELDOUT = batch(0, 6)


def everywhere(of):
    """A student, not distilled, with scions at every site of both slots."""
    return student(of, replace("blocks[*].mixer", "hyena_x"), replace("blocks[*].mlp", "mlp", ratio=3.0))


def test_search_of_a_model():
    original = teacher(depth=4)
    scions = everywhere(original)
    found = search(original, scions, HELDOUT, seed=3)
    assert [one.site for one in found.found] == [Site(i, slot) for i in range(4) for slot in ("mixer", "mlp")]
    assert all(one.harm > 0 and one.saved > 0 for one in found.found)
    assert list(found.choices) == ["least harm", "greedy search", "interleaved 50%", "deep 50%"]
    assert found.choices["interleaved 50%"].selectors == ("blocks[1,3].mixer", "blocks[1,3].mlp")
    assert found.choices["deep 50%"].selectors == ("blocks[2,3].mixer", "blocks[2,3].mlp")
    assert all(one.saved >= found.choices["interleaved 50%"].saved for one in found.choices.values())
    assert found.best == min((found.choices[name] for name in ("least harm", "greedy search")), key=lambda one: one.harm)
    assert found.best.harm == pytest.approx(Harm(original, scions, HELDOUT, seed=3)(found.best.sites), rel=1e-5)
    # The edits graft the best set, and the model that is there already holds the student's scions at it.
    again = graft(original, compose(*map(parse, found.edits)), jax.random.key(0))
    assert again.spec == found.model.spec
    assert again.meta.sites == found.model.meta.sites == tuple(map(str, found.best.sites))
    assert flops(original.spec) - flops(found.model.spec) == found.best.saved
    for site in (one.site for one in found.found):
        source = scions if site in found.best.sites else original
        key = original.spec.block_key(site.block)
        mine, theirs = (jax.tree.leaves(model.params["blocks"][key][site.slot]) for model in (found.model, source))
        assert all(a is b for a, b in zip(mine, theirs, strict=True))


def test_search_within_a_budget():
    original = teacher(depth=4)
    found = search(original, everywhere(original), HELDOUT, budget=flops(original.spec) - 1)
    least, greedy, *_ = found.choices.values()
    assert least.sites == greedy.sites == (min(found.found, key=lambda one: one.harm / one.saved).site,)
    assert found.edits == (str(replace(str(least.sites[0]), least.sites[0].held(found.model.spec))),)


def test_search_refuses():
    original = teacher(depth=4)
    scions = everywhere(original)
    with pytest.raises(BadInput, match="expected 1 to"):
        search(original, scions, HELDOUT, budget=0)
    with pytest.raises(BadInput, match="60% has no interleaving"):
        search(original, scions, HELDOUT, share=60)
    with pytest.raises(BadInput, match="no scions in its meta"):
        search(original, original, HELDOUT)
    half = student(original, replace("blocks[1::2].mixer", "hyena_x"))
    with pytest.raises(BadInput, match=r"no scion at blocks\[2\].mixer"):
        search(original, half, HELDOUT)
