"""What a protocol calls the decoder."""

import re
import shutil
from pathlib import Path

import numpy as np

from graftax.checkpoint.torch_writer import write_torch
from graftax.evaluate.run import decoder_name
from graftax.models import Model
from graftax.testing import tiny_spec

VAE = Path(__file__).parents[1] / "goldens" / "vae16" / "diffusers"


def test_a_vae_is_told_apart_by_its_weights_and_by_the_statistics_of_its_latents(tmp_path):
    folder, model = shutil.copytree(VAE, tmp_path / "vae"), Model(tiny_spec(in_channels=16), {})
    plain = decoder_name(model, str(folder), "")
    assert re.fullmatch(r"VAE vae [0-9a-f]{12}", plain)
    names = []
    for std in (1.0, 2.0):
        write_torch(folder / "latents_stats.pt", {"mean": np.zeros(16), "std": np.full(16, std)})
        names.append(decoder_name(model, str(folder), ""))
    assert len({plain, *names}) == 3
    assert all(name.startswith(f"{plain} latents_stats.pt ") for name in names)
