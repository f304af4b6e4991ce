import pytest

from graftax.evaluate.bench.save import bench_save

pytestmark = pytest.mark.full_compiler


def test_rows():
    (row,) = bench_save(megabytes=(1,), rounds=1)
    assert list(row) == ["megabytes", "blocked_s", "background_s", "restore_s", "open_s", "load"]
    assert row["megabytes"] == 1
    assert min(value for name, value in row.items() if name.endswith("_s")) > 0
