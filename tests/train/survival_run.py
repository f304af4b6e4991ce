"""Script: one of two processes, with 4 simulated devices each, that train together until done, or until one is shot:
survival_run.py JOB WORKDIRS PORT PROCESS [VICTIM BATCH SIGNAL MILLISECONDS]

JOB is "linear", "stage1" or "stage2"; it is run in each of WORKDIRS (with commas between; PROCESS in them stands for the
process's number) in turn. In the last, the process VICTIM sends itself SIGNAL so many milliseconds after it was asked for
batch BATCH or a later one. Ends with 42 when preempted, as the command line does; the state of a finished run is
WORKDIR/final.npz.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "distill")]
PROCESSES, BATCH = 2, 16
STEPS = {"linear": 12, "stage1": 48, "stage2": 48}


class Shared:
    """This process's share of a set's batches; the victim shoots itself."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, shot: list[str]) -> None:
        from graftax.data.pipeline import batches

        self._inner = batches({"image": images, "label": labels}, BATCH, 0, jax.process_index(), jax.process_count())
        self._shot = shot

    def __next__(self) -> dict[str, np.ndarray]:
        if self._shot:
            victim, batch, name, delay = self._shot
            if jax.process_index() == int(victim) and self.state()["next_batch"] >= int(batch):
                self._shot = []
                shoot = lambda: os.kill(os.getpid(), signal.Signals[name])  # noqa: E731
                threading.Timer(int(delay) / 1000, shoot).start()
        return next(self._inner)

    def state(self) -> dict[str, Any]:
        return self._inner.state()

    def restore(self, state: dict[str, Any]) -> None:
        self._inner.restore(state)


def make(job: str, shot: list[str]) -> tuple[Any, Shared]:
    from graftax.train import MeshConfig, OptimiserConfig, diffusion_loss, train_job

    rng, mesh = np.random.default_rng(0), MeshConfig(data=2, fsdp=4).build()
    labels = np.arange(64, dtype=np.int32) % 10
    if job == "linear":
        from linear_job import FAST, loss_fn, params

        def loss(p: Any, batch: Any, key: jax.Array) -> Any:
            return loss_fn(p, {**batch, "image": batch["image"][..., 0, 0]}, key)  # (b, 3, 1, 1) to (b, 3)

        return train_job(params, loss, FAST, ema_decay=0.9, mesh=mesh), Shared(
            rng.standard_normal((64, 3, 1, 1), np.float32), labels, shot
        )
    from tiny_graft import mixed, teacher

    from graftax.diffusion import Process
    from graftax.distill import DistillConfig, distill_job

    data = Shared(rng.standard_normal((64, 8, 8, 4), np.float32), labels, shot)
    original = teacher(depth=4)
    student = mixed(original)
    if job == "stage1":
        return distill_job(original, student, DistillConfig(steps=STEPS[job]), mesh=mesh), data
    loss = diffusion_loss(student.spec, Process())
    optimiser = OptimiserConfig(learning_rate=1e-3, warmup_steps=2)
    return train_job(lambda: student.params, loss, optimiser, frozen=("pos_embed",), ema_decay=0.9, mesh=mesh), data


if __name__ == "__main__":
    name, folders, port, process, *shot = sys.argv[1:]
    jax.config.update("jax_enable_preemption_service", False)  # as graftax.cli.main does
    jax.distributed.initialize(f"127.0.0.1:{port}", PROCESSES, int(process), heartbeat_timeout_seconds=10)
    assert len(jax.devices()) == 8

    from graftax.errors import GraftaxError
    from graftax.train import LoopConfig, fit
    from graftax.train.sharding import to_host

    *before, last = map(Path, folders.replace("PROCESS", process).split(","))
    for folder in (*before, last):
        job, data = make(name, shot if folder == last else [])
        loop = LoopConfig(steps=STEPS[name], seed=1, log_every=4, save_every=3)
        try:
            state = fit(job, data, loop, folder, show=False)
        except GraftaxError as error:
            print(error, file=sys.stderr)
            sys.exit(error.exit_code)
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(to_host(state))]
        if jax.process_index() == 0:
            np.savez(folder / "final.npz", *leaves)
