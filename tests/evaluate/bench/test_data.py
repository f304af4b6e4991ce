import pytest

from graftax.evaluate.bench import bench_data, format_table

pytestmark = pytest.mark.full_compiler


def test_both_sources_are_measured():
    rows = bench_data(variant="DiT-S/8", batch=8, batches=2, records=40, pictures=2, threads=2, rounds=1)
    assert [row["source"].split()[0] for row in rows] == ["latents", "JPEG"]
    assert all(row["chips"] == pytest.approx(row["per_s"] / row["needs_per_s"]) for row in rows)
    assert all(row["cpu_ms"] > 0 for row in rows)
    assert len(format_table(rows).splitlines()) == 3


def test_an_xl_model_takes_about_110_images_a_second_on_v5e():
    row, _ = bench_data(batch=2, batches=1, records=2, pictures=1, threads=1, rounds=1)
    assert row["needs_per_s"] == pytest.approx(110.7, abs=0.1)
