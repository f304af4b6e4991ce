"""Script: a few steps of a small DiT on meshes over 8 simulated devices; prints what came out as JSON."""

from __future__ import annotations

import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from graftax.diffusion import Process
from graftax.errors import BadInput
from graftax.models import dit_spec, init
from graftax.train import LoopConfig, MeshConfig, OptimiserConfig, diffusion_loss, fit, train_job

SPEC = dit_spec(input_size=8, patch_size=2, hidden_size=64, depth=2, num_heads=4, num_classes=10)


class Fixed:
    def __init__(self, size: int = 16) -> None:
        self.size, self.position = size, 0

    def __next__(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.position)
        self.position += 1
        image = rng.standard_normal((self.size, 8, 8, 4)).astype(np.float32)
        return {"image": image, "label": rng.integers(0, 10, self.size).astype(np.int32)}

    def state(self) -> int:
        return self.position

    def restore(self, state: int) -> None:
        self.position = state


def run(mesh: MeshConfig | None, params: dict) -> dict:
    records: list = []
    # A large eps: with the usual one Adam's first updates are signs, which turn rounding into whole steps.
    optimiser = OptimiserConfig(learning_rate=0.1, warmup_steps=1, eps=0.1)
    job = train_job(
        lambda: params, diffusion_loss(SPEC, Process()), optimiser,
        frozen=("pos_embed",), ema_decay=0.5, mesh=mesh.build() if mesh else None,
    )  # fmt: skip
    state = fit(job, Fixed(), LoopConfig(steps=3, log_every=1), on_record=records.append, show=False)

    def fraction(tree: dict) -> float:
        kernel = tree["blocks"]["00"]["mlp"]["fc1"]["kernel"]
        return kernel.addressable_shards[0].data.size / kernel.size

    moments = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    return {
        "losses": [record["loss"] for record in records],
        "norms": [record["grad_norm"] for record in records],
        "ema": float(sum(np.abs(np.asarray(x)).sum() for x in jax.tree.leaves(state.ema))),
        "fractions": [fraction(tree) for tree in (state.trainable, state.ema, moments.mu, moments.nu)],
    }


def refusal(mesh: MeshConfig, size: int) -> str:
    try:
        job = train_job(lambda: {"w": np.ones(3)}, lambda p, b, k: (p["w"].sum(), {}), OptimiserConfig(), mesh=mesh.build())
        fit(job, Fixed(size), LoopConfig(steps=1), show=False)
    except BadInput as error:
        return str(error)
    return ""


if __name__ == "__main__":
    meshes = {
        "one": None, "data": MeshConfig(), "fsdp": MeshConfig(fsdp=8), "tensor": MeshConfig(tensor=4),
        "all": MeshConfig(data=2, fsdp=2, tensor=2),
    }  # fmt: skip
    params = init(SPEC, jax.random.key(0))
    found = {name: run(mesh, params) for name, mesh in meshes.items()}
    refused = [refusal(MeshConfig(), 12), refusal(MeshConfig(fsdp=3), 16), refusal(MeshConfig(tensor=0), 16)]
    print(json.dumps({"runs": found, "refused": refused}))
