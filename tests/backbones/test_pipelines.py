"""Whole trajectories, as diffusers' pipelines take them from given embeddings and noise, with what each family says of how
it is drawn."""

from pathlib import Path

import numpy as np
import pytest

import graftax

GOLDENS = Path(__file__).parents[1] / "goldens"
TOLERANCE = 1e-4
"""Relative to the largest latent."""


def read(name, **told):
    """The model, and what its pipeline was given and gave, channels last."""
    golden = dict(np.load(GOLDENS / name / "pipeline.npz"))
    return graftax.load(GOLDENS / name / "diffusers", **told), golden


def nhwc(array):
    return array.transpose(0, 2, 3, 1)


def unpacked(tokens, rows, columns):
    """Images (b, 2 rows, 2 columns, c) of Flux's tokens (b, rows columns, 4 c), each a channel's 2x2 after another's."""
    b, _, c = tokens.shape
    grid = tokens.reshape(b, rows, columns, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)  # (b, rows, 2, columns, 2, c)
    return grid.reshape(b, 2 * rows, 2 * columns, c // 4)


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def negative(golden):
    """Conditions and their unconditional twins."""
    names = [name for name in ("text", "pooled") if name in golden]
    return {name: golden[name] for name in names}, {name: golden[f"neg_{name}"] for name in names}


@pytest.mark.parametrize(
    ("name", "grid", "settings", "cond"),
    [("schnell", (4, 5), {}, {}), ("dev", (3, 4), {"steps": 6}, {"guidance": np.full(2, 3.5, np.float32)})],
)
def test_flux(name, grid, settings, cond):
    """Schnell in the four steps that are its own; dev's shift follows from the image's size."""
    model, golden = read(f"flux/{name}")
    cond = {**cond, "text": golden["text"], "pooled": golden["pooled"]}
    out = graftax.sample(model, cond=cond, initial_noise=unpacked(golden["latents"], *grid), **settings)
    assert relative(out, unpacked(golden["out"], *grid)) < TOLERANCE


def test_sd3():
    model, golden = read("sd3/sd3_medium")
    cond, null = negative(golden)
    out = graftax.sample(model, cond=cond, null_cond=null, initial_noise=nhwc(golden["latents"]), steps=5)
    assert relative(out, nhwc(golden["out"])) < TOLERANCE


@pytest.mark.slow
def test_sd3_led_away_from_skipped_layers():
    """SD3.5-medium with skip-layer guidance in the second and third of five steps, which matters."""
    model, golden = read("sd3/sd35_medium")
    cond, null = negative(golden)
    given = {"cond": cond, "null_cond": null, "initial_noise": nhwc(golden["latents"]), "steps": 5, "cfg_scale": 5.0}
    out = graftax.sample(model, **given, skip=(1,), skip_span=(0.01, 0.5))
    assert relative(out, nhwc(golden["out"])) < TOLERANCE
    assert relative(graftax.sample(model, **given), nhwc(golden["out"])) > 100 * TOLERANCE


def test_auraflow():
    model, golden = read("auraflow")
    cond, null = negative(golden)
    out = graftax.sample(model, cond=cond, null_cond=null, initial_noise=nhwc(golden["latents"]), steps=5)
    assert relative(out, nhwc(golden["out"])) < 10 * TOLERANCE
