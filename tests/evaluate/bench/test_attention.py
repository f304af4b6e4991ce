"""Attention and what is grafted in its place at toy size: columns as documented, what did not run left out."""

import pytest

from graftax.errors import BadInput
from graftax.evaluate.bench import bench_attention, format_table


@pytest.mark.slow
def test_rows():
    dense, tiles, grafted = rows = bench_attention(tokens=(64,), mixers=("swa",), width=16, heads=2, dense_up_to=0, rounds=1)
    assert len(format_table(rows).splitlines()) == 4
    assert dense.keys() == tiles.keys() == grafted.keys()
    assert [row["mixer"] for row in rows] == ["mha dense", "mha blockwise", "swa"]
    assert dense["forward_ms"] is dense["train_speedup"] is None
    assert dense["train_temp_mb"] > 2 * 64**2 * 4 / 1e6  # its matrix is there, though nothing ran
    assert tiles["forward_speedup"] == tiles["train_speedup"] == 1
    assert grafted["gflop"] < dense["gflop"] == tiles["gflop"]
    assert all(row["train_ms"] > 0 and row["forward_ms"] > 0 for row in (tiles, grafted))
    with pytest.raises(BadInput, match="250 tokens"):
        bench_attention(tokens=(250,))
