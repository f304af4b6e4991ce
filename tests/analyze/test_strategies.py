"""Strategies on models of several kinds of blocks: where they may be applied, and that they give the reference's outputs."""

import json
from pathlib import Path

import numpy as np
import pytest

import graftax
from graftax.analyze.painters import OutputError
from graftax.analyze.strategies import KINDS, single_skips, strategies, stretches, switches
from graftax.backbones.auraflow import variant as auraflow
from graftax.backbones.embedders import unpacked
from graftax.backbones.flux import variant as flux
from graftax.backbones.sd3 import variant as sd3
from graftax.spec import Step
from graftax.surgery import parallel
from graftax.testing import tiny_spec

GOLDENS = Path(__file__).parents[1] / "goldens" / "flux" / "schnell"


def parts(spec):
    return {one.name: (one.span, one.joint) for one in stretches(spec)}


def test_published_models_fall_into_their_stretches():
    """Flux counts 0..56; SD3.5's two kinds are one stretch, and its last block, which leaves the text alone, is in none."""
    assert parts(flux("flux-schnell")) == {
        "double": ((0, 19), True), "single": ((19, 57), False), "double and single": ((0, 57), None),
    }  # fmt: skip
    assert parts(auraflow("auraflow-0.2")) == {
        "aura_joint": ((0, 4), True), "aura_single": ((4, 36), False), "aura_joint and aura_single": ((0, 36), None),
    }  # fmt: skip
    assert parts(sd3("sd3-medium")) == {"sd3": ((0, 23), True)}
    assert parts(sd3("sd3.5-medium")) == {"sd3_dual+sd3": ((0, 23), True)}
    assert parts(tiny_spec(depth=6)) == {"dit": ((0, 6), False)}


def test_steps_of_both_kinds_are_a_stretch_of_their_own():
    spec = flux("flux-schnell")
    merged = parallel(18, 20).on(spec)
    assert parts(merged)["double+single"] == ((18, 19), None)


def test_spans_of_a_stretch():
    single = stretches(flux("flux-schnell"))[1]
    assert single.steps == 38
    assert single.centred()[0] == (37, 40)  # the smallest, of one position alone, has no order
    assert single.centred()[-1] == (20, 57)
    assert single.halves() == ((20, 38), (38, 56))
    assert stretches(sd3("sd3-medium"))[0].halves() == ((1, 11), (12, 22))
    assert stretches(auraflow("auraflow-0.2"))[0].halves() == ()


def test_the_middle_is_that_of_the_stretch():
    spec = flux("flux-schnell")
    (whole,) = strategies(spec, [(20, 57)], ("middle repeat",))
    (own,) = strategies(spec, [(20, 57)], ("middle repeat",), within=(19, 57))
    assert (whole.program[25], own.program[25]) == (Step((28,)), Step((38,)))
    assert graftax.parse(str(own)).on(spec).program == own.program
    assert [one.span for one in switches(spec, (0, 3))] == [(0, 2), (1, 3)]


@pytest.fixture(scope="module")
def measured():
    """Tiny schnell, its golden inputs as one batch, and the errors of programs on them by one compilation."""
    model, golden = graftax.load(GOLDENS / "diffusers"), dict(np.load(GOLDENS / "io.npz"))
    cond = {name: golden[name] for name in ("text", "pooled")}
    return model, OutputError(model, [(golden["latent"].transpose(0, 2, 3, 1), golden["t"], cond)])


def golden_of(spec):
    """By its name in rewrites.json, the strategy that is the same rewrite, of those that are strategies."""
    spans = {"double": ((1, 4), (0, 5)), "single": ((6, 9), (5, 10))}
    found = {}
    for kind, (span, within) in spans.items():
        on_span = strategies(spec, [span], KINDS, seeds=range(30), loops=(2, 3), within=within)
        found |= {f"{kind}.{name}": s for s in on_span for name in [NAMES.get(s.kind, "")] if name}
        found |= {f"{kind}.loop{k}": s for k in (2, 3) for s in on_span if s.text.endswith(f"loops={k}, alpha=1.0)")}
        found[f"{kind}.skip_one"] = single_skips(spec)[span[0] + 1]
        found[f"{kind}.switch"] = switches(spec, within)[1]
        order = json.loads((GOLDENS / "rewrites.json").read_text())[f"{kind}.permute"]
        (order,) = [one["order"] for one in order.values()]
        steps = tuple(Step((within[0] + i,)) for i in order)
        found[f"{kind}.permute"] = next(s for s in on_span if s.kind == "random" and s.program[slice(*span)] == steps)
    return found


NAMES = {
    "skip": "skip_span", "middle repeat": "middle_repeat", "reverse": "reverse", "parallel": "parallel",
}  # fmt: skip


def test_strategies_are_the_references_rewrites(measured):
    """Errors against the intact model equal those of diffusers' modules rewritten by hand, all in one compilation."""
    model, error = measured
    rewrites, chosen = np.load(GOLDENS / "rewrites.npz"), golden_of(model.spec)
    assert len(chosen) == 18
    base = unpacked(rewrites["base"], 2, (4, 5))
    for name, strategy in chosen.items():
        theirs = unpacked(rewrites[name], 2, (4, 5)) - base
        assert error(strategy.program).error == pytest.approx(np.linalg.norm(theirs) / np.linalg.norm(base), rel=1e-4), name
    assert error.compilations == 1
