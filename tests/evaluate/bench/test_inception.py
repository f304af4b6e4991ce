import pytest

from graftax.evaluate.bench import BENCHES

pytestmark = pytest.mark.full_compiler


@pytest.mark.slow
def test_rows_agree_with_themselves() -> None:
    (row,) = BENCHES["inception"](batches=(1,), size=32, rounds=2)
    assert (row["batch"], row["size"]) == (1, 32)
    assert abs(row["images_per_s"] - 1000 / row["median_ms"]) < 1e-6 * row["images_per_s"]
    assert abs(row["hours_50k"] * row["images_per_s"] * 3600 - 50_000) < 1
