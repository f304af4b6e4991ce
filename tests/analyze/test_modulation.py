"""The error of exchanged modulations in closed form, against running both on every condition."""

import numpy as np
import pytest
from tiny_graft import student, teacher

from graftax.analyze import modulation_error
from graftax.blocks import Context, bind, build, part
from graftax.errors import BadInput
from graftax.models.backbone import find
from graftax.models.shared import with_shared
from graftax.surgery import Site, replace
from graftax.surgery.replace import CONDITIONS


def modulations(model, site, vec):
    """What the block gets, (s, parts d), by running the operator."""
    context = with_shared(model.spec, model.params, Context(vec), None)
    operator = build(model.spec, model.spec.blocks[site.block].kind, site.slot, site.held(model.spec))
    weights = part(model.params["blocks"][model.spec.block_key(site.block)], site.slot)
    return np.asarray(bind(operator, weights, context)(), np.float64)


@pytest.mark.parametrize(
    "edit",
    [
        replace("blocks[*].adaln", "adaln_shared"),
        pytest.param(replace("blocks[1:].adaln", "adaln_lowrank", rank=5), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_is_that_of_running_both(edit):
    before = teacher(depth=3)
    after = student(before, edit)
    found = modulation_error(before, after)
    rng = np.random.default_rng(0)
    classes = before.spec.classes
    drawn = find(before.spec).vec(
        before.spec, before.params, rng.uniform(0, 1000, 20_000).astype(np.float32), rng.integers(0, classes + 1, 20_000)
    )
    every = find(before.spec).vectors(before.spec, before.params, CONDITIONS)
    for vec, tolerance in ((every, 1e-4), (drawn, 0.02)):
        expected = {}
        for site in (Site(i, "adaln") for i in range(3)):
            wanted, got = (modulations(model, site, vec) for model in (before, after))
            expected[str(site)] = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
        assert found == pytest.approx({**expected, "mean": np.mean(list(expected.values()))}, rel=tolerance, abs=1e-6)
    assert found["blocks[2].adaln"] > 0.1


def test_exact_exchanges_lose_nothing():
    before = teacher(depth=3)
    full = student(before, replace("blocks[*].adaln", "adaln_lowrank", rank=before.spec.width))
    assert max(modulation_error(before, full).values()) < 1e-5
    assert set(modulation_error(before, before).values()) == {0.0}


def test_refuses():
    with pytest.raises(BadInput, match="3 sites of width 48 and 2 of width 48"):
        modulation_error(teacher(depth=3), teacher(depth=2))
