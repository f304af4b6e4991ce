"""A training step of a DiT against PyTorch with the same weights, objective and optimiser, on CPU in float32.

The fair rival is the faster of "torch eager" and "torch oneDNN": see `bench_forward`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax.errors import BadInput
from graftax.evaluate.bench.forward import published
from graftax.evaluate.bench.rows import Rows
from graftax.evaluate.bench.timing import interleaved, load
from graftax.models import random_params
from graftax.models.forward import forward
from graftax.ops.base import Params
from graftax.spec import ModelSpec
from graftax.train.diffusion_task import training_tree
from graftax.train.loop import Batch, Metrics
from graftax.train.optimiser import OptimiserConfig
from graftax.train.state import create_state
from graftax.train.step import make_step

FROZEN = ("pos_embed",)
OPTIMISER = OptimiserConfig(learning_rate=1e-4, warmup_steps=0, grad_clip=None)
EMA = 0.999


class _Training:
    """Training of a DiT here; each call is one update on the same batch. Keeps the loss of the last one."""

    def __init__(self, spec: ModelSpec, params: Params, batch: Batch, plan: str, remat: str) -> None:
        def loss(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
            out, _ = forward(spec, params, batch["image"], batch["t"], {"y": batch["label"]}, plan=plan, remat=remat)
            return jnp.square(out[..., : batch["image"].shape[-1]] - batch["noise"]).mean(), {}

        self.step = make_step(loss, OPTIMISER, ema_decay=EMA)
        self.state = create_state(training_tree(spec, params, FROZEN), OPTIMISER.build(), FROZEN)
        self.batch, self.key, self.loss = batch, jax.random.key(0), 0.0

    def __call__(self) -> Metrics:
        self.state, metrics = self.step(self.state, self.batch, self.key)
        self.loss = float(metrics["loss"])
        return metrics


def bench_train(
    variant: str = "DiT-S/2", depth: int | None = None, batch: int = 8, plans: tuple[str, ...] = ("auto",),
    remat: str = "auto", rounds: int = 5,
) -> Rows:  # fmt: skip
    """One update (forward, backward, AdamW, average) of a DiT here, in eager PyTorch, and there with its linear layers
    through oneDNN.

    The objective is the mean squared error of the predicted noise, on one batch. `plans`: as in `graftax.models.plans`, one
    row each; `remat`: as in `graftax.models.stack`. `depth` keeps only so many blocks. Columns: candidate, min_ms,
    median_ms, spread, speedup (its time over that of the first plan, median over rounds), loss of the last update, which
    must agree, load. Raises `BadInput` where PyTorch is missing, the variant unknown, or `depth` out of range.
    """
    if importlib.util.find_spec("torch") is None:
        raise BadInput("bench train: PyTorch is not installed, expected the extra graftax[bench]")
    spec = published(variant, 256, depth)
    params = random_params(spec, jax.random.key(0))
    data = _batch(spec, batch)
    runs: dict[str, Any] = {f"graftax {plan}": _Training(spec, params, data, plan, remat) for plan in plans}
    ours = next(iter(runs))
    runs |= {name: _torch_training(spec, params, data, onednn) for name, onednn in _RIVALS.items()}
    before, timings = load(), interleaved(runs, rounds, warmup=2)
    return [
        {
            "candidate": name, "min_ms": 1e3 * timing.best, "median_ms": 1e3 * timing.median, "spread": timing.spread,
            "speedup": timing.over(timings[ours]), "loss": runs[name].loss, "load": before,
        }
        for name, timing in timings.items()
    ]  # fmt: skip


_RIVALS = {"torch eager": False, "torch oneDNN": True}


def _torch_training(spec: ModelSpec, params: Params, batch: Batch, onednn: bool) -> Callable[[], Any]:
    from graftax.evaluate.bench.torch_dit import TorchTraining

    arrays = {name: np.asarray(value) for name, value in batch.items()}
    return TorchTraining(spec, params, arrays, OPTIMISER, EMA, onednn)


def _batch(spec: ModelSpec, count: int) -> Batch:
    rng = np.random.default_rng(0)
    image, noise = (rng.standard_normal((count, *spec.image_shape), np.float32) for _ in range(2))
    t = rng.integers(0, 1000, count).astype(np.float32)
    label = rng.integers(0, spec.classes, count).astype(np.int32)
    return jax.device_put({"image": image, "noise": noise, "t": t, "label": label})
