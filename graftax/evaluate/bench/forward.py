"""Forward pass of a DiT against PyTorch with the same weights, on CPU in float32.

The fair rival is "torch oneDNN". PyTorch's own choice of matrix product, MKL, runs at about half speed on processors that
are not Intel's, so most of the distance to "torch eager" there is MKL's, not ours.
"""

from __future__ import annotations

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

from graftax.backbones.dit import variant as published_spec
from graftax.errors import BadInput
from graftax.evaluate.bench.rows import Rows
from graftax.evaluate.bench.timing import interleaved, load
from graftax.models import random_params
from graftax.models.forward import forward_prepared, prepare_params
from graftax.ops.base import Params
from graftax.spec import ModelSpec

OURS = "graftax"


def bench_forward(
    variant: str = "DiT-XL/2", resolution: int = 256, depth: int | None = None, batches: tuple[int, ...] = (1, 8),
    rounds: int = 5, plan: str = "unroll",
) -> Rows:  # fmt: skip
    """One forward pass of a DiT here, in eager PyTorch, and in PyTorch with its linear layers through oneDNN.

    `depth` keeps only so many blocks. Columns: batch, candidate, min_ms, median_ms, spread (median over minimum, less 1),
    speedup (its time over ours, median over rounds), max_difference of its output from ours, load. Raises `BadInput`
    where PyTorch is missing, the variant unknown, or `depth` out of range.
    """
    if importlib.util.find_spec("torch") is None:
        raise BadInput("bench forward: PyTorch is not installed, expected the extra graftax[bench]")
    spec = published(variant, resolution, depth)
    params = random_params(spec, jax.random.key(0))
    return [row for batch in batches for row in _rows(spec, params, batch, rounds, plan)]


def published(name: str, resolution: int = 256, depth: int | None = None) -> ModelSpec:
    """A published DiT, or its first `depth` blocks between the same ends. Raises `BadInput` on what there is not."""
    spec = published_spec(name, resolution)
    if depth is None:
        return spec
    if not 1 <= depth <= spec.depth:
        raise BadInput(f"bench depth: got {depth}, expected 1..{spec.depth}")
    return spec.replace(blocks=spec.blocks[:depth], program=())


def _rows(spec: ModelSpec, params: Params, batch: int, rounds: int, plan: str) -> Rows:
    import torch

    from graftax.evaluate.bench.torch_dit import TorchDiT

    x, t, y = _inputs(spec, batch)
    run = jax.jit(functools.partial(forward_prepared, spec))
    prepared = prepare_params(spec, params, plan)
    rival = TorchDiT(spec, params)
    given = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(t), torch.from_numpy(y)

    def rival_run(onednn: bool) -> np.ndarray:
        with torch.inference_mode():
            return rival.use_onednn(onednn)(*given).numpy()

    candidates = {
        OURS: lambda: run(prepared, jnp.asarray(x), jnp.asarray(t), {"y": jnp.asarray(y)})[0],
        "torch eager": lambda: rival_run(False),
        "torch oneDNN": lambda: rival_run(True),
    }
    before, timings = load(), interleaved(candidates, rounds)
    expected = np.asarray(candidates[OURS]())
    outputs = {OURS: expected} | {name: candidates[name]().transpose(0, 2, 3, 1) for name in candidates if name != OURS}
    return [
        {
            "batch": batch, "candidate": name, "min_ms": 1e3 * timing.best, "median_ms": 1e3 * timing.median,
            "spread": timing.spread, "speedup": timing.over(timings[OURS]),
            "max_difference": float(np.abs(outputs[name] - expected).max()), "load": before,
        }
        for name, timing in timings.items()
    ]  # fmt: skip


def _inputs(spec: ModelSpec, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    t = rng.integers(0, 1000, batch).astype(np.float32)
    return rng.standard_normal((batch, *spec.image_shape), np.float32), t, rng.integers(0, spec.classes, batch)
