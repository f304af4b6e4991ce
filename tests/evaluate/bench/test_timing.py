"""Timing and tables."""

import time

import pytest

from graftax.errors import BadInput
from graftax.evaluate.bench.rows import format_table
from graftax.evaluate.bench.timing import Timing, interleaved

pytestmark = pytest.mark.full_compiler


def test_candidates_take_turns():
    calls = []
    times = interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3, warmup=2)
    assert calls == list("ab") * 5
    assert [len(times[name].seconds) for name in "ab"] == [3, 3]


def test_times_are_wall_times():
    times = interleaved({"slow": lambda: time.sleep(0.02), "fast": lambda: None}, rounds=3)
    assert times["slow"].best >= 0.02
    assert times["slow"].over(times["fast"]) > 2


def test_statistics():
    timing = Timing((2.0, 1.0, 4.0))
    assert (timing.best, timing.median, timing.spread) == (1.0, 2.0, 1.0)
    # Both sides slow down together in the third round: the ratio does not mind.
    assert timing.over(Timing((1.0, 0.5, 2.0))) == 2.0


def test_no_rounds():
    with pytest.raises(BadInput, match="rounds: got 0"):
        interleaved({"a": lambda: None}, rounds=0)


def test_table():
    text = format_table([{"name": "one", "ms": 0.12345, "lines": 12345}, {"name": "other", "ms": None, "lines": 7}])
    assert text.splitlines() == ["name      ms   lines", "one    0.123  12,345", "other      -       7"]
    assert format_table([]) == ""
