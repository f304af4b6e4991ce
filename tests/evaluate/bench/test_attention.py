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


@pytest.mark.slow
def test_a_pixarts_block_has_a_text_to_look_at():
    """Its gradient needs more memory: 300 tokens of keys and values, and the attention to them."""
    settings = {"tokens": (64,), "mixers": ("swa",), "width": 16, "heads": 2, "rounds": 1}
    dit, pixart = (bench_attention(**settings, block=block) for block in ("dit", "pixart"))
    for plain, reading in zip(dit, pixart, strict=True):
        assert reading["gflop"] == plain["gflop"]  # of the mixer alone
        assert reading["train_ms"] > 0
        assert reading["train_temp_mb"] > plain["train_temp_mb"] + 64 * 300 * 2 * 4 / 1e6


def test_an_unknown_block_is_refused():
    with pytest.raises(BadInput, match=r"block 'pixrat', expected one of \('dit', 'pixart'\); did you mean 'pixart'\?"):
        bench_attention(block="pixrat")
