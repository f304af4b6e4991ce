"""Goals, offers and the front, on figures that are given."""

import math

import pytest

from graftax.analyze.plan import (
    MIXED,
    Goal,
    Offer,
    Size,
    cheapest,
    choose,
    edits_of,
    front,
    largest,
    made_of,
    saves_at_most,
)
from graftax.errors import BadInput
from graftax.spec import op
from graftax.surgery import Site, parse, select
from graftax.testing import tiny_spec

WHOLE = Size(1.0, 100.0, 1000.0)


def offer(block, operator, harm, seconds):
    return Offer(Site(block, "mixer"), operator, Size(seconds, 10.0, 5.0), harm)


SWA, LINEAR = op("swa", window=4), op("affine", rank=0)
OFFERS = (
    offer(0, SWA, 0.1, 0.1), offer(1, SWA, 0.4, 0.1), offer(0, LINEAR, 0.3, 0.2), offer(1, LINEAR, 0.3, 0.2),
    offer(2, LINEAR, 0.1, -0.1),
)  # fmt: skip


@pytest.mark.parametrize(("name", "value", "saving"), [("faster", 1.25, 0.2), ("flops", 0.8, 20), ("params", 0.7, 300)])
def test_goals(name, value, saving):
    goal = Goal(name, value)
    assert goal.saving(WHOLE) == pytest.approx(saving)
    assert goal.reached(WHOLE, saving) == pytest.approx(value)


@pytest.mark.parametrize(("name", "value"), [("faster", 1.0), ("flops", 1.0), ("params", 0.0), ("faster", math.nan)])
def test_goals_that_ask_for_nothing(name, value):
    with pytest.raises(BadInput, match=f"{name}: got"):
        Goal(name, value)


def test_choosing():
    assert saves_at_most(OFFERS, "seconds") == pytest.approx(0.4)
    assert [(one.site.block, one.operator) for one in largest(OFFERS, "seconds")] == [(0, LINEAR), (1, LINEAR)]
    # Per second: 1 and 4 of the window, 1.5 of the map; what costs time is not in it.
    assert [(one.site.block, one.operator) for one in cheapest(OFFERS, "seconds")] == [(0, SWA), (1, LINEAR)]
    assert [one.site.block for one in choose(OFFERS[:2], "seconds", 0.1)] == [0]
    assert [one.site.block for one in choose(OFFERS[2:4], "seconds", 0.25)] == [0, 1]
    assert choose(OFFERS[:2], "seconds", 0.3) == ()


def test_a_graft_adds_up_and_its_edits_read_back():
    one = made_of(MIXED, (OFFERS[3], OFFERS[0]), 0.35, WHOLE)
    assert one.size == Size(pytest.approx(0.7), 80.0, 990.0)
    assert (one.faster, one.flops, one.params) == (pytest.approx(1 / 0.7), 0.8, 0.99)
    after = parse(one.edits[0]).on(tiny_spec())
    after = parse(one.edits[1]).on(after)
    held = [str(site.held(after)) for site in select("blocks[*].mixer", after)]
    assert held == ["swa(window=4)", "affine(rank=0)", "mha", "mha"]
    assert edits_of(OFFERS[2:4]) == ("replace(blocks[0,1].mixer, affine(rank=0), init=random)",)


def test_front():
    good, worse, fast = (
        made_of("a", OFFERS[:1], 0.1, WHOLE), made_of("b", OFFERS[1:2], 0.4, WHOLE), made_of("c", OFFERS[2:4], 0.5, WHOLE)
    )  # fmt: skip
    assert front([fast, worse, good, good]) == (good, fast)
