"""The Hyena measurement at toy size: columns as documented."""

import numpy as np
import pytest

from graftax.evaluate.bench.hyena import bench_hyena

pytestmark = pytest.mark.full_compiler


@pytest.mark.slow
def test_rows():
    rows = bench_hyena(tokens=(16, 64), width=24, heads=3, rounds=1)
    assert [(row["tokens"], row["attention"]) for row in rows] == [(16, "dense"), (64, "dense")]
    assert rows[0].keys() == rows[1].keys()
    for row in rows:
        for prefix in ("", "train_"):
            ratio = row[f"{prefix}attention_ms"] / row[f"{prefix}hyena_ms"]
            np.testing.assert_allclose(row[f"{prefix}speedup"], ratio, rtol=1e-6)  # one round: no medians to differ
