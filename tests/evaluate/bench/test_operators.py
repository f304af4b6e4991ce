"""The measurement of operators: break-even, what is not run, and rows at toy size."""

import math

import pytest

from graftax import ops
from graftax.errors import BadInput
from graftax.evaluate.bench import operators
from graftax.evaluate.bench.operators import ATTENTION, REST, bench_operators, break_even, break_even_by_cost
from graftax.progress import Progress

pytestmark = pytest.mark.full_compiler


@pytest.mark.parametrize(
    ("speedups", "tokens"),
    [
        ((2.0, 3.0, 4.0), 256),
        ((0.5, 2.0, 8.0), 512),
        ((2.0, 0.5, 2.0), 2048),  # wins, loses, wins: from the last on
        ((0.5, 0.5, 0.9), math.inf),
        ((0.5, None, None), math.inf),
        ((0.25, 4.0, None), 512),
        ((None, None, None), None),
    ],
)
def test_break_even(speedups, tokens):
    assert break_even((256, 1024, 4096), speedups) == (None if tokens is None else pytest.approx(tokens))


def test_break_even_by_cost():
    assert break_even_by_cost("swa(window=4)", 64, 4) == 16  # of nine it sees all
    assert break_even_by_cost("mamba2", 1152, 16) > 1000  # twice attention's projections
    assert math.isinf(break_even_by_cost("mha", 64, 4))
    for kind in (kind for kind, cls in ops.OPERATORS.items() if cls.role == "mixer"):
        assert break_even_by_cost(kind, 64, 4) >= 1


@pytest.mark.slow
def test_what_does_not_fit_is_said_and_left_out():
    rows = bench_operators(tokens=(16,), mixers=("swa",), width=16, heads=2, rounds=1, memory_gb=1e-9)
    assert [row["mixer"] for row in rows] == [ATTENTION, REST, "swa"]
    for row in rows:
        assert row["forward_ms"] is row["train_ms"] is row["block_speedup"] is None
        assert "forward not run: needs" in row["note"]
        assert "train" in row["note"]


def test_refuses():
    with pytest.raises(BadInput, match="17 tokens"):
        bench_operators(tokens=(17,))
    with pytest.raises(BadInput, match="ascending"):
        bench_operators(tokens=(64, 16))
    with pytest.raises(BadInput, match="'swab'"):
        bench_operators(tokens=(16,), mixers=("swab",), width=16, heads=2)


@pytest.mark.slow
def test_candidates_of_one_length_share_their_input():
    """A copy for each would fill a machine's memory, at 65,536 tokens, after each was found to fit."""
    length = operators._candidates(operators._sizes(16, 16, 2), ("swa",), None)
    with Progress(1, "operators") as progress:
        operators._try(length, {}, 2, 30.0, 0.0, progress)
    assert len({id(one.run.args[1]) for one in length}) == 1  # of (weights, x), in training (weights, x, g)


@pytest.mark.slow
def test_rows():
    """The second length is expected to be too long."""
    mixers = ("swa", "hyena_x(kernel=3)", "linear")
    rows = bench_operators(tokens=(16, 64), mixers=mixers, width=16, heads=2, rounds=2, seconds=1e-9)
    first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    assert [row["mixer"] for row in first] == [ATTENTION, REST, *mixers]
    assert all(row["forward_ms"] > 0 and row["train_ms"] > 0 and not row["note"] for row in first)
    assert first[0]["forward_speedup"] == first[0]["block_speedup"] == first[0]["flops_ratio"] == 1
    assert all(0 < row["share"] < 1 for row in first if row["mixer"] != REST)
    assert all(row["forward_ms"] is None and "expected, more than" in row["note"] for row in second)
