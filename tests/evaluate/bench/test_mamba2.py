"""The scan measurement at toy size: columns as documented, forms that agree, and what is known without a clock."""

import pytest

from graftax.evaluate.bench import format_table
from graftax.evaluate.bench.mamba2 import bench_mamba2
from graftax.ops.ssd import default_chunk

pytestmark = pytest.mark.full_compiler


@pytest.mark.slow
def test_forms_agree_and_chunks_need_less_memory():
    rows = bench_mamba2(tokens=(192,), chunks=(default_chunk(),), heads=4, headdim=8, d_state=16, rounds=1)
    assert [(row["tokens"], row["form"]) for row in rows] == [(192, "sequential"), (192, f"chunk {default_chunk()}*")]
    assert len(format_table(rows).splitlines()) == 3
    sequential, chunked = rows
    assert sequential["forward_speedup"] == sequential["training_speedup"] == 1
    assert sequential["error"] == 0 < chunked["error"] < 2e-6
    assert chunked["training_temp_mb"] < sequential["training_temp_mb"] / 3
    assert min(chunked[f"{kind}_{what}"] for kind in ("forward", "training") for what in ("ms", "speedup")) > 0
