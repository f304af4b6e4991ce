"""A class model with PixArt's shared adaLN against a reference: what `replace(.., adaln_shared)` makes of a DiT computes."""

from pathlib import Path

import numpy as np

import graftax
from graftax.backbones import pixart
from graftax.backbones.embedders import FinalLayer, PatchEmbed, TimestepEmbed
from graftax.blocks import Context
from graftax.models.shared import with_shared
from graftax.models.stack import apply_stack
from graftax.ops.base import call
from graftax.spec import BlockSpec

GOLDENS = Path(__file__).parents[1] / "goldens" / "shared_adaln"


def test_blocks_and_output_are_the_reference():
    """Weights are PixArt's without cross-attention; vec is the time's embedding plus the class'."""
    golden = np.load(GOLDENS / "shared_adaln_class.npz")
    model = graftax.load(GOLDENS / "pixart.pt", num_heads=2, interpolation=0.5)
    held = tuple((slot, op) for slot, op in model.spec.blocks[0].ops if slot != "cross")
    spec, params = model.spec.replace(blocks=(BlockSpec("dit", held),) * model.spec.depth), model.params
    x = np.moveaxis(golden["x"], 1, -1)
    tokens = call(PatchEmbed(24, 2), params["x_embedder"], x) + pixart.BACKBONE.positions(model.spec)
    vec = call(TimestepEmbed(24), params["t_embedder"], golden["t"]) + golden["label_table"][golden["y"]]
    np.testing.assert_allclose(vec, golden["cond"], atol=2e-5)
    context = with_shared(spec, params, Context(vec), None)
    np.testing.assert_allclose(context.shared["adaln_shared"], golden["shared_modulation"], rtol=2e-5, atol=2e-5)
    state, taps = apply_stack(spec, params["blocks"], {"img": tokens}, context, plan="unroll", capture=("block/out",))
    for i, out in enumerate(taps["block/out"]):
        expected = golden[f"cls_block_{i}"]
        np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())
    out = call(FinalLayer(2, 8, spec.sizes.grid, table=True), params["final"], state["img"], vec)
    expected = np.moveaxis(golden["out"], 1, -1)
    np.testing.assert_allclose(out, expected, atol=2e-5 * np.abs(expected).max())
