"""Harm of scions: equal to really grafting those sites, one compilation for all choices, costs from closed forms."""

import numpy as np
import pytest
from tiny_graft import batch, mixed, student, teacher

from graftax.analyze.harm import Harm, flops_saved
from graftax.diffusion import Process
from graftax.errors import BadInput
from graftax.models import Model, library
from graftax.models.cost import flops
from graftax.surgery import Site, compose, replace, reverse, select
from graftax.surgery import parallel as in_parallel

HELDOUT = batch(0, 10)
STEPS = Process().respaced(50)


def grafted_by_hand(of, scions, sites):
    """The teacher with the student's operators at `sites`, spec and weights."""
    blocks, params = list(of.spec.blocks), dict(of.params["blocks"])
    for site in sites:
        key = of.spec.block_key(site.block)
        blocks[site.block] = blocks[site.block].with_op(site.slot, site.held(scions.spec))
        params[key] = {**params[key], site.slot: scions.params["blocks"][key][site.slot]}
    return Model(of.spec.replace(blocks=tuple(blocks)), {**of.params, "blocks": params})


def relative_error(of, other, heldout, seed):
    """The definition, one pass of each model over the whole set."""
    n = len(heldout["label"])
    rng = np.random.default_rng(seed)
    t = rng.permutation(((np.arange(n) + 0.5) / n * len(STEPS)).astype(np.int32))
    x_t = STEPS.q_sample(heldout["image"], t, rng.standard_normal(heldout["image"].shape, np.float32))
    outs = [np.asarray(m(x_t, STEPS.timestep_map[t], heldout["label"]), np.float64) for m in (of, other)]
    return np.linalg.norm(outs[1] - outs[0]) / np.linalg.norm(outs[0])


REORDERED = pytest.param(compose(reverse(1, 3), in_parallel(0, 2)), marks=pytest.mark.slow)


@pytest.mark.parametrize("change", [None, REORDERED], ids=str)
def test_harm_is_that_of_the_grafted_model(change):
    """Scions of three kinds in both slots, self-grafted ones among them."""
    original = teacher(depth=4) if change is None else student(teacher(depth=4), change)
    scions = mixed(original)
    sites = select(scions.meta.sites, scions.spec)
    assert len(sites) == 4
    harm = Harm(original, scions, HELDOUT, process=STEPS, seed=3, batch_size=5)
    assert harm.sites == sites
    assert harm([]) == 0
    for chosen in (sites[:1], sites[1:2], sites[1:]):
        expected = relative_error(original, grafted_by_hand(original, scions, chosen), HELDOUT, 3)
        assert expected > 0.01
        assert harm(chosen) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_compiled_once_whatever_the_depth(monkeypatch):
    def traced(depth):
        count, real = [], library.run_block
        monkeypatch.setattr(library, "run_block", lambda *args, **options: (count.append(1), real(*args, **options))[1])
        original = teacher(depth=depth)
        harm = Harm(original, student(original, replace("blocks[*].mixer", "hyena_x")), HELDOUT, batch_size=5)
        values = {harm([site]) for site in harm.sites}
        harm(harm.sites[::2])
        monkeypatch.undo()
        assert len(values) == depth
        assert harm.compilations == 1
        return len(count)

    assert traced(2) == traced(4)


def test_saved_flops_are_the_difference_of_the_models():
    original = teacher(depth=4)
    scions = student(original, replace("blocks[1,3].mixer", "swa"), replace("blocks[2].mlp", "mlp", ratio=3.0))
    sites = select(scions.meta.sites, scions.spec)
    saved = flops_saved(original.spec, scions.spec, sites)
    assert tuple(saved) == sites
    assert sum(saved.values()) == flops(original.spec) - flops(scions.spec)
    assert saved[Site(1, "mixer")] == saved[Site(3, "mixer")] > 0 < saved[Site(2, "mlp")]
    assert flops_saved(scions.spec, original.spec, sites)[Site(1, "mixer")] == -saved[Site(1, "mixer")]


def test_refuses():
    original = teacher(depth=4)
    scions = mixed(original)
    with pytest.raises(BadInput, match=r"blocks\[3\].mlp: the student has no scion there"):
        Harm(original, scions, HELDOUT)([Site(3, "mlp")])
    with pytest.raises(BadInput, match=r"held-out set: image \(0, 8, 8, 4\)"):
        Harm(original, scions, {name: part[:0] for name, part in HELDOUT.items()})
    with pytest.raises(BadInput, match=r"held-out set: x: shape \(10, 8, 4, 4\)"):
        Harm(original, scions, {**HELDOUT, "image": HELDOUT["image"][:, :, :4]})
    with pytest.raises(BadInput, match="student depth: 4, expected the teacher's 2"):
        Harm(teacher(depth=2), scions, HELDOUT)
    with pytest.raises(BadInput, match="no scions in its meta"):
        Harm(original, original, HELDOUT)
