"""Whole models against the reference: outputs of plain and grafted DiT, and every tap of the plain one."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from graftax.backbones.embedders import sinusoidal_positions
from graftax.blocks import build
from graftax.checkpoint import open_checkpoint
from graftax.models import Model

GOLDENS = Path(__file__).parent.parent / "goldens"
TAPS = ("block/in", "mixer/in", "mixer/out", "mlp/in", "mlp/out", "block/out")
REFERENCE_TAPS = {
    name: name.replace("mixer", "attn").replace("block/", "").replace("/", ".") for name in TAPS if name != "block/in"
}
TOLERANCE = 2e-5


def load(name, **overrides):
    spec, params, _ = open_checkpoint(GOLDENS / f"{name}.pt", num_heads=4, **overrides)
    return Model(spec, params), np.load(GOLDENS / f"{name}.npz")


def run(model, golden):
    out, taps = model.apply(golden["x"].transpose(0, 2, 3, 1), golden["t"], golden["y"], capture=TAPS)
    return np.asarray(out).transpose(0, 3, 1, 2), taps  # (b, c, h, w), as the reference has it


def test_dit_with_taps():
    model, golden = load("dit")
    out, taps = run(model, golden)
    assert np.abs(out - golden["out"]).max() <= TOLERANCE
    activations = np.load(GOLDENS / "dit_activations.npz")
    assert set(taps) == set(TAPS)
    for name, theirs in REFERENCE_TAPS.items():
        expected = np.stack([activations[f"blocks.{i}.{theirs}"] for i in range(model.spec.depth)])
        assert taps[name].shape == expected.shape
        assert np.abs(taps[name] - expected).max() <= TOLERANCE, name
    np.testing.assert_array_equal(taps["block/in"][1:], taps["block/out"][:-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "slot", "kind", "overrides"),
    [
        ("graft_mha_hyena_x_50p", "mixer", "hyena_x", {}),
        ("graft_mha_swa_50p", "mixer", "swa", {"window": 4}),
        ("graft_mlp_mlp_50p", "mlp", "mlp", {}),
    ],
)
def test_grafted(name, slot, kind, overrides):
    model, golden = load(name, **overrides)
    kinds = [block[slot].kind for block in model.spec.blocks]
    assert [kinds[1], kinds[3]] == [kind, kind]
    out, taps = run(model, golden)
    assert np.abs(out - golden["out"]).max() <= TOLERANCE
    # Every operator, alone, maps its own input tap to its output tap.
    for i, block in enumerate(model.spec.blocks):
        for slot in ("mixer", "mlp"):
            operator = build(model.spec, "dit", slot, block[slot])
            alone = operator.apply({"params": model.params["blocks"][f"{i:02d}"][slot]}, taps[f"{slot}/in"][i])
            np.testing.assert_allclose(alone, taps[f"{slot}/out"][i], atol=TOLERANCE)


def test_position_table():
    model, _ = load("dit")
    np.testing.assert_array_equal(sinusoidal_positions(48, (4, 4)), model.params["pos_embed"])


def test_compute_dtype_stays_near():
    model, golden = load("dit")
    x = golden["x"].transpose(0, 2, 3, 1)
    out, taps = model.apply(x, golden["t"], golden["y"], capture=("block/out",), dtype=jnp.bfloat16)
    expected = golden["out"].transpose(0, 2, 3, 1)
    error = np.abs(np.asarray(out) - expected).max() / np.abs(expected).max()
    assert out.dtype == taps["block/out"].dtype == jnp.float32
    assert 1e-4 < error < 0.05  # it did compute in bfloat16
