"""The VAE measurement at toy size: columns as documented, and diffusers' results are ours."""

import pytest

from graftax.errors import BadInput
from graftax.evaluate.bench import bench_vae
from graftax.evaluate.bench.vae import compare
from graftax.nets.vae import VAESpec

pytestmark = pytest.mark.full_compiler

TOY = VAESpec(block_out_channels=(8,), layers_per_block=1, norm_num_groups=2, scaling_factor=0.5, shift_factor=0.1)


@pytest.mark.slow
def test_rows():
    rows = compare(TOY, resolution=8, batch=2, rounds=1)
    rivals = ["graftax", "diffusers", "diffusers, channels last"]
    assert [(row["operation"], row["candidate"]) for row in rows] == [(op, c) for op in ("encode", "decode") for c in rivals]
    assert all(row["max_difference"] < 1e-5 for row in rows)
    assert all(row["speedup"] == 1 for row in rows[::3])


@pytest.mark.parametrize(("settings", "word"), [({"family": "sd9"}, "sd9"), ({"resolution": 100}, "multiple of 8")])
def test_other_settings_are_refused(settings, word):
    with pytest.raises(BadInput, match=word):
        bench_vae(**settings)
