"""Measurements of this installation on this machine. Each function returns rows: dicts with the same keys, one per column.

Sides of a comparison are interleaved in one run, because on shared machines speed drifts by factors; ratios are medians
over rounds. `load` is the load average of the last minute before the first round: other work shows there.
"""

from __future__ import annotations

from collections.abc import Callable

from graftax.evaluate.bench.attention import bench_attention
from graftax.evaluate.bench.compile import bench_compile
from graftax.evaluate.bench.conv import bench_conv
from graftax.evaluate.bench.data import bench_data
from graftax.evaluate.bench.distill import bench_distill
from graftax.evaluate.bench.forward import bench_forward
from graftax.evaluate.bench.hyena import bench_hyena
from graftax.evaluate.bench.inception import bench_inception
from graftax.evaluate.bench.mamba2 import bench_mamba2
from graftax.evaluate.bench.model import bench_model
from graftax.evaluate.bench.operators import bench_operators
from graftax.evaluate.bench.rows import Rows, format_table
from graftax.evaluate.bench.sampling import bench_sampling
from graftax.evaluate.bench.save import bench_save
from graftax.evaluate.bench.tokenizers import bench_tokenizers
from graftax.evaluate.bench.train import bench_train
from graftax.evaluate.bench.vae import bench_vae

BENCHES: dict[str, Callable[..., Rows]] = {
    "forward": bench_forward,
    "train": bench_train,
    "compile": bench_compile,
    "attention": bench_attention,
    "operators": bench_operators,
    "model": bench_model,
    "conv": bench_conv,
    "hyena": bench_hyena,
    "mamba2": bench_mamba2,
    "sampling": bench_sampling,
    "save": bench_save,
    "distill": bench_distill,
    "data": bench_data,
    "inception": bench_inception,
    "vae": bench_vae,
    "tokenizers": bench_tokenizers,
}
"""Every measurement by name."""

__all__ = [
    "BENCHES", "Rows", "bench_attention", "bench_compile", "bench_conv", "bench_data", "bench_distill", "bench_forward",
    "bench_hyena", "bench_inception", "bench_mamba2", "bench_model", "bench_operators", "bench_sampling", "bench_save",
    "bench_tokenizers", "bench_train", "bench_vae", "format_table",
]  # fmt: skip
