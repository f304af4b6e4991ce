"""Script: small text-to-image models written as diffusers writes them, loaded onto 8 simulated devices, and drawn there.

Prints, as JSON, how far the images are from those of one device, and which share of the weights a device holds.
"""

from __future__ import annotations

import json
import os
import tempfile

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

import graftax
from graftax.backbones.auraflow import auraflow_spec
from graftax.backbones.flux import flux_spec
from graftax.backbones.sd3 import sd3_spec
from graftax.models import Model
from graftax.models.backbone import find
from graftax.spec import ModelSpec
from graftax.testing import random_params
from graftax.train import MeshConfig

SIZES = {"input_size": 8, "hidden_size": 64, "num_heads": 4, "text_width": 12, "text_tokens": 4}
SPECS = {
    "flux": flux_spec(**SIZES, double=1, single=2, pooled_width=10),
    "sd3": sd3_spec(**SIZES, depth=2, in_channels=4, positions=6, pooled_width=10, qk_norm="rms"),
    "auraflow": auraflow_spec(**SIZES, joint=1, single=1, positions=36),
}
MESHES = {"fsdp": MeshConfig(fsdp=8), "both": MeshConfig(fsdp=2, tensor=4), "all": MeshConfig(data=2, fsdp=2, tensor=2)}


def drawn(model: Model) -> np.ndarray:
    """Eight images, two steps, each of a text of its own."""
    rng = np.random.default_rng(0)
    example = find(model.spec).example(model.spec, 8)
    cond = {name: rng.standard_normal(value.shape, np.float32) for name, value in example.items()}
    null = {name: np.zeros_like(value) for name, value in cond.items()}
    return np.asarray(graftax.sample(model, cond=cond, null_cond=null, steps=2, rng=jax.random.key(1)))


def differences(name: str, spec: ModelSpec) -> dict[str, dict[str, float]]:
    """By mesh: the largest difference of images, relative to the largest number, and the share of weights on a device."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        graftax.export(Model(spec, random_params(spec, jax.random.key(0))), f"{folder}/model")
        sizes = {"input_size": 8, "text_tokens": 4}
        expected = drawn(graftax.load(f"{folder}/model", **sizes))
        for mesh, config in MESHES.items():
            model = graftax.load(f"{folder}/model", mesh=config.build(), **sizes)
            leaves = jax.tree.leaves(model.params)
            share = sum(leaf.addressable_shards[0].data.size for leaf in leaves) / sum(leaf.size for leaf in leaves)
            error = np.abs(drawn(model) - expected).max() / np.abs(expected).max()
            found[mesh] = {"error": float(error), "share": share}
    return found


if __name__ == "__main__":
    print(json.dumps({name: differences(name, spec) for name, spec in SPECS.items()}))
