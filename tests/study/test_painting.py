"""What is measured of strategies: per time, per prompt, and where numbers overflow."""

from types import SimpleNamespace

import numpy as np

from graftax.analyze import Deviation, single_skips, stretches
from graftax.backbones.flux import variant
from graftax.study.painting import Measured, main_span, shown, spans_of, tried
from graftax.testing import tiny_spec

SPEC = variant("flux-schnell")


def test_what_is_tried_on_flux():
    double, single, across = stretches(SPEC)
    assert [main_span(one) for one in (double, single, across)] == [(5, 15), (29, 48), (15, 43)]
    assert spans_of(double) == ((8, 12), (5, 15), (1, 19), (1, 9), (10, 18))
    for one in (double, single, across):
        plans = tried(SPEC, one, 10)
        assert len([s for s in plans["spans"] if s.span == main_span(one) and s.kind == "random"]) == 1
        assert len(plans["random"]) == 9  # ten with that one
        shows = shown(plans["spans"], single_skips(SPEC), one)
        assert len(shows) == 10
        assert shows["skip the last"].span == (one.span[1] - 1, one.span[1])


def test_numbers_by_prompt_and_where_they_overflow():
    spec = tiny_spec()
    intact = np.ones((4, 2, 2, 1), np.float32)
    first, second = single_skips(spec)[:2]
    drawn = {spec.program: intact, first.program: intact * np.array([2, 2, 1, 4]).reshape(4, 1, 1, 1),
             second.program: intact * np.inf}  # fmt: skip
    nan = np.nan
    deviations = {spec.program: Deviation(0.0, 1.0, np.array([0, nan, 0])),
                  first.program: Deviation(0.5, 0.9, np.array([0.5, nan, 0.6])),
                  second.program: Deviation(nan, nan, np.array([0.5, nan, nan]))}  # fmt: skip
    calls = []

    def error(program):
        calls.append(program)
        return deviations[program]

    error.spec = SimpleNamespace(program=spec.program)
    measured = Measured(error, drawn.__getitem__, 2)
    line = measured.line(first)
    assert (line["distances"], line["distance"], line["by_time"]) == ([1.0, 1.5], 1.25, [0.5, None, 0.6])
    far = measured.line(second)
    assert (far["error"], far["distance"], far["by_time"]) == (np.inf, np.inf, [0.5, None, np.inf])
    assert measured.line(first) == line
    assert len(calls) == 3  # the intact model, and each strategy once
    assert measured.picture(first)[:, 0, 0, 0].tolist() == [2, 1]
