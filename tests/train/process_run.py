"""Script: stages 1 and 2 of a small model on a mesh over all processes' simulated devices; prints the losses as JSON.

process_run.py PROCESSES INDEX PORT, one for each of PROCESSES, which have 8 devices together. Each feeds its part of every
batch.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={8 // int(sys.argv[1])} --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from graftax.diffusion import Process
from graftax.distill import DistillConfig, calibrate, distill_job, install
from graftax.models import Model
from graftax.surgery import graft, replace
from graftax.testing import random_params, tiny_spec
from graftax.train import LoopConfig, MeshConfig, OptimiserConfig, diffusion_loss, fit, train_job, training_tree

COUNT, INDEX, PORT = map(int, sys.argv[1:])
# A large eps: with the usual one Adam's first updates are signs, which turn rounding into whole steps.
STAGE1 = DistillConfig(steps=3, learning_rate=0.1, eps=0.1)
STAGE2 = OptimiserConfig(learning_rate=0.02, warmup_steps=1, eps=0.1)
FROZEN = ("pos_embed",)
HELDOUT = {"image": np.random.default_rng(9).standard_normal((8, 8, 8, 4), np.float32), "label": np.arange(8)}


class Share:
    """This process's rows of batches that are a function of their number."""

    def __init__(self, size: int = 8) -> None:
        self.size, self.position = size, 0

    def __next__(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.position)
        self.position += 1
        image, label = rng.standard_normal((self.size, 8, 8, 4), np.float32), rng.integers(0, 10, self.size)
        rows = slice(INDEX * self.size // COUNT, (INDEX + 1) * self.size // COUNT)
        return {"image": image[rows], "label": label[rows].astype(np.int32)}

    def state(self) -> int:
        return self.position

    def restore(self, state: int) -> None:
        self.position = state


def trained(job: Any) -> tuple[Any, list[float]]:
    """The final state of three steps, and their losses."""
    records: list = []
    state = fit(job, Share(), LoopConfig(steps=3, log_every=1), on_record=records.append, show=False)
    return state, [record["loss"] for record in records]  # of stage 1 the last is that of the held-out set


def main() -> dict:
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    spec = tiny_spec(depth=2, hidden_size=64)
    teacher = Model(spec, random_params(spec, jax.random.key(1)))
    student = graft(teacher, replace("blocks[1].mixer", "hyena_x"), jax.random.key(2))
    fitted = calibrate(teacher, student, Share(), 1, STAGE1, mesh=mesh, show=False)
    state, first = trained(distill_job(teacher, fitted, STAGE1, mesh=mesh, heldout=HELDOUT))
    student = install(fitted, state)
    job = train_job(
        lambda: training_tree(student.spec, student.params, FROZEN), diffusion_loss(student.spec, Process()), STAGE2,
        frozen=FROZEN, ema_decay=0.5, mesh=mesh, accumulate=2,
    )  # fmt: skip
    state, second = trained(job)
    kernel = state.ema["blocks"]["dit"]["mlp"]["0_mlp"]["fc1"]["kernel"]
    return {
        "stage1": first, "stage2": second, "devices": jax.device_count(),
        "whole": bool(kernel.is_fully_addressable), "part": kernel.addressable_shards[0].data.size / kernel.size,
    }  # fmt: skip


if __name__ == "__main__":
    if COUNT > 1:
        jax.distributed.initialize(f"127.0.0.1:{PORT}", COUNT, INDEX)
    print(json.dumps(main()))
