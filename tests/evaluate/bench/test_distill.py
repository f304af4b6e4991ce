"""The stage 1 measurement at toy size: columns as documented, and both sides learn the same."""

import pytest

from graftax.evaluate.bench.distill import bench_distill

pytestmark = pytest.mark.full_compiler


@pytest.mark.slow
def test_joint_and_single_site_training_end_at_the_same_loss():
    toy = {"depth": 3, "width": 48, "grid": 2, "batch": 4, "selector": "blocks[0,2].mixer", "rounds": 1}
    rows = bench_distill(**toy, methods=("vmap", "map"))
    assert [row["method"] for row in rows] == ["vmap", "map"]
    assert rows[0].keys() == rows[1].keys()
    for row in rows:
        assert (row["sites"], row["tokens"]) == (2, 4)
        assert row["loss"] == pytest.approx(row["loss_single"], rel=1e-4)
        assert row["ratio"] > 0 < row["ratio_stopping"]
    (without,) = bench_distill(**toy, stopping=False)
    assert without["ratio_stopping"] is None is without["loss_single"]
