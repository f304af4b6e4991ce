"""The tables of `graftax bench operators`, on rows that are given."""

import json

import pytest

from graftax.evaluate.bench.operators import ATTENTION, REST
from graftax.pages import bench_page

TIMES = {ATTENTION: (2.0, 32.0), REST: (6.0, 24.0), "swa": (4.0, 8.0)}
"""Milliseconds at 256 and 1,024 tokens, forward; training takes three times as long."""


def row(name, i, tokens):
    """As `bench_operators` makes it."""
    own, attention, rest = TIMES[name][i], TIMES[ATTENTION][i], TIMES[REST][i]
    speeds = (None, None, None) if name == REST else (attention / own, own / (own + rest), (attention + rest) / (own + rest))
    found = {"tokens": tokens, "mixer": name, "width": 64, "heads": 4, "gflop": {REST: 3.0}.get(name, 1.0 + 8 * i)}
    for prefix, share, block in (("forward", "share", "block_speedup"), ("train", "train_share", "train_block_speedup")):
        found |= {f"{prefix}_ms": own, f"{prefix}_speedup": speeds[0], share: speeds[1], block: speeds[2]}
        found[f"{prefix}_temp_mb"] = 1.0
    return {**found, "spread": 0.0, "load": 0.5, "note": ""}


@pytest.fixture
def rows():
    return [row(name, i, tokens) for i, tokens in enumerate((256, 1024)) for name in TIMES]


def test_tables(rows):
    wins, forward, _, shares, _ = (table for _, table in bench_page.tables(rows))
    # Half as fast at 256 tokens, four times at 1,024: a third of the way between, in logarithms.
    assert wins[1][:3] == ["swa", "406", "406"]
    assert int(wins[1][3].replace(",", "")) <= 25  # a window of nine
    assert forward[1:] == [
        [ATTENTION, "2 ms", "32 ms"], [REST, "6 ms", "24 ms"], ["swa", "0.50 (0.80)", "4.00 (1.75)"],
    ]  # fmt: skip
    assert shares[1] == ["256", "25%", "25%", "25%", "1.33 x"]
    assert shares[2] == ["1,024", "75%", "57%", "57%", "4.00 x"]


def test_a_length_that_was_too_long_is_said(rows):
    last = rows[3]
    last |= dict.fromkeys(("forward_ms", "forward_speedup", "share", "block_speedup"))
    last["note"] = "forward not run: about 99 s a call expected, more than 30"
    for one in (rows[5],):
        one |= dict.fromkeys(("forward_speedup", "block_speedup"))
    text = bench_page.text("operators", rows)
    assert "mha at 1,024 tokens: forward not run: about 99 s" in text
    wins = bench_page.tables(rows)[0][1]
    assert wins[1][1] == "not yet"


def test_page(rows, tmp_path):
    page = bench_page.write(rows, tmp_path / "out")
    assert "Operators against attention" in page.read_text()
    assert json.loads((page.parent / bench_page.FILE).read_text())["rows"] == rows
    assert (page.parent / "forward.png").read_bytes().startswith(b"\x89PNG")
    assert (page.parent / "table.md").read_text().count("| swa |") == 4


def test_other_measurements_are_plain_tables():
    assert bench_page.text("forward", [{"ms": 1.5}]).split() == ["ms", "1.5"]
