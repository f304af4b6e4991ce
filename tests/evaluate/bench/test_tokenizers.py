"""The table of autoencoders: what each costs beside its model, and what cached latents spare a training step."""

import pytest

from graftax.evaluate.bench import bench_tokenizers, format_table


def test_rows():
    rows = {row["tokenizer"]: row for row in bench_tokenizers()}
    assert list(rows) == ["SD-VAE", "VA-VAE", "demo"]
    assert len(format_table(list(rows.values())).splitlines()) == 4
    sd, va = rows["SD-VAE"], rows["VA-VAE"]
    assert sd["forwards"] == pytest.approx(447.45 / 118.65, rel=1e-3)
    assert sd["cached_saves_percent"] == pytest.approx(100 * 136.36 / (3 * 118.65 + 136.36), rel=1e-3)
    assert va["cached_saves_percent"] == pytest.approx(100 * 68.97 / (3 * 118.66 + 68.97), rel=1e-3)
    assert sd["gmac"] > 2 * va["gmac"]
    assert all(0.97 * one["run_gmac"] < one["xla_gmac"] < one["run_gmac"] < one["gmac"] for one in (sd, va))
    assert all(row["gmac"] == pytest.approx(row["encode_gmac"] + row["decode_gmac"]) for row in rows.values())
