"""The VAE against diffusers' AutoencoderKL with the same weights, on CPU in float32."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax.errors import BadInput
from graftax.evaluate.bench.rows import Rows
from graftax.evaluate.bench.timing import interleaved, load
from graftax.nets import vae
from graftax.nets.convolving import compile_options
from graftax.nets.vae import FAMILIES, VAESpec, raw_latents
from graftax.nets.vae_files import block_types, params_from_tensors

OURS = "graftax"
RIVALS = {"diffusers": "contiguous_format", "diffusers, channels last": "channels_last"}
"""The rival, and the order in which PyTorch keeps its tensors (a name in `torch`)."""


def bench_vae(family: str = "sd", resolution: int = 256, batch: int = 1, rounds: int = 3) -> Rows:
    """A VAE at true size on random weights, here and in diffusers: encode to moments, decode to pixels.

    diffusers runs as it comes, and with its tensors channels-last, which its convolutions prefer on some processors.
    Columns: operation, candidate, min_ms, median_ms, spread (median over minimum, less 1), speedup (its time over ours,
    median over rounds), max_difference of its output from ours, load. Raises `BadInput` where diffusers is missing,
    `family` is not one of `graftax.nets.vae.FAMILIES`, or the resolution is no multiple of its factor.
    """
    if importlib.util.find_spec("diffusers") is None:
        raise BadInput("bench vae: diffusers is not installed, expected the extra graftax[bench]")
    if family not in FAMILIES:
        raise BadInput(f"bench vae: family {family!r}, expected one of {tuple(FAMILIES)}")
    return compare(FAMILIES[family], resolution, batch, rounds)


def compare(spec: VAESpec, resolution: int, batch: int, rounds: int) -> Rows:
    """The rows of `bench_vae` for a VAE of any size."""
    if resolution < 1 or resolution % spec.factor:
        raise BadInput(f"bench vae: resolution {resolution}, expected a multiple of {spec.factor}")
    models = {name: _theirs(spec, order) for name, order in RIVALS.items()}
    tensors = {name: tensor.numpy() for name, tensor in models["diffusers"].state_dict().items()}
    params = jax.tree.map(jnp.asarray, params_from_tensors(spec, tensors))
    rng, side = np.random.default_rng(0), resolution // spec.factor
    images = rng.uniform(-1, 1, (batch, resolution, resolution, spec.in_channels)).astype(np.float32)
    latents = rng.standard_normal((batch, side, side, spec.latent_channels), np.float32)
    rows: Rows = []
    for operation, function, given in [("encode", vae.encode_moments, images), ("decode", vae.decode, latents)]:
        compiled = jax.jit(functools.partial(function, spec), compiler_options=compile_options())
        ours = functools.partial(compiled, params, jnp.asarray(given))
        rivals = {name: _runner(spec, model, operation, given, RIVALS[name]) for name, model in models.items()}
        rows += _rows(operation, {OURS: ours, **rivals}, rounds)
    return rows


def _rows(operation: str, candidates: dict[str, Callable[[], Any]], rounds: int) -> Rows:
    before, timings = load(), interleaved(candidates, rounds)
    expected = np.asarray(candidates[OURS]())
    return [
        {
            "operation": operation, "candidate": name, "min_ms": 1e3 * timing.best, "median_ms": 1e3 * timing.median,
            "spread": timing.spread, "speedup": timing.over(timings[OURS]),
            "max_difference": float(np.abs(np.asarray(candidates[name]()) - expected).max()), "load": before,
        }
        for name, timing in timings.items()
    ]  # fmt: skip


def _theirs(spec: VAESpec, order: str) -> Any:
    """diffusers' model of a spec, whose fields are its settings; the same random weights each time."""
    import torch
    from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]

    sizes: Any = dataclasses.asdict(spec)
    del sizes["down_attention"], sizes["up_attention"]  # which the kinds of blocks say there
    torch.manual_seed(0)
    model: Any = AutoencoderKL(**sizes | block_types(spec))
    return model.eval().requires_grad_(False).to(memory_format=getattr(torch, order))


def _runner(spec: VAESpec, model: Any, operation: str, given: np.ndarray, order: str) -> Callable[[], np.ndarray]:
    """A call of diffusers' model with `given` in our order of axes and our scale; its result likewise (b, h, w, c)."""
    import torch

    if operation == "decode":
        given = np.array(raw_latents(spec, jnp.asarray(given)))
    x = torch.from_numpy(given).permute(0, 3, 1, 2).contiguous(memory_format=getattr(torch, order))

    def run() -> np.ndarray:
        with torch.inference_mode():
            if operation == "decode":
                out = model.decode(x).sample
            else:
                posterior = model.encode(x).latent_dist
                out = torch.cat([posterior.mean, posterior.logvar], dim=1)
        return out.numpy().transpose(0, 2, 3, 1)

    return run
