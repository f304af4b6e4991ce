"""Script: stage 1 on meshes over 8 simulated devices; prints what came out as JSON."""

from __future__ import annotations

import json
import os

# Only equality is tested, so code is compiled quickly and runs slowly.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from tiny_graft import Stream, batch, mixed, teacher

from graftax.distill import DistillConfig, calibrate, distill, distill_job
from graftax.train import LoopConfig, MeshConfig

# A large eps: with the usual one Adam's first updates are signs, which turn rounding into whole steps.
CONFIG = DistillConfig(steps=4, learning_rate=0.1, eps=0.1)


def run(mesh: MeshConfig | None) -> dict:
    built = mesh.build() if mesh else None
    original = teacher(hidden_size=64)
    grafted = mixed(original)
    loop = LoopConfig(steps=4, log_every=1)
    trained, history = distill(
        original, grafted, Stream(size=16), CONFIG, loop, heldout=batch(99, 16), mesh=built, show=False
    )
    fitted = distill_job(
        original, calibrate(original, grafted, Stream(size=16), 4, CONFIG, mesh=built, show=False), CONFIG,
        heldout=batch(99, 16), mesh=built,
    )  # fmt: skip
    assert fitted.evaluate is not None
    scions = distill_job(original, grafted, CONFIG, mesh=built).init().scions
    leaf = max(jax.tree.leaves(scions), key=lambda x: x.size)
    return {
        "losses": [line["loss"] for line in history if line["split"] == "train"],
        "error": history[-1]["error"],
        "fitted_error": fitted.evaluate(fitted.init())["error"],
        "weights": float(sum(np.abs(np.asarray(x)).sum() for x in jax.tree.leaves(trained.params))),
        "part": leaf.addressable_shards[0].data.size / leaf.size,
    }


if __name__ == "__main__":
    meshes = {"one": None, "fsdp": MeshConfig(fsdp=8), "all": MeshConfig(data=2, fsdp=2, tensor=2)}
    print(json.dumps({name: run(mesh) for name, mesh in meshes.items()}))
