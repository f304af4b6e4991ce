"""Script: a Flux in bfloat16, written shard by shard, loaded onto 8 simulated devices; prints what that took, as JSON.

big_run.py FOLDER WIDTH DOUBLE SINGLE SHARDS: the folder is made and filled. Sizes are in bytes. Memory is anonymous memory:
pages of mapped files, which the system may take back at any time, are none.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np

import graftax
from graftax.backbones.flux.layouts import DiffusersFlux
from graftax.backbones.flux.variants import flux_spec
from graftax.models.layout import tensor_shapes
from graftax.spec import ModelSpec
from graftax.train import MeshConfig

Shapes = Mapping[str, tuple[int, ...]]
LAYOUT = DiffusersFlux()


def write_folder(folder: Path, spec: ModelSpec, shards: int) -> list[int]:
    """A diffusers folder of `spec`: tensor k holds k / 256 but for its first row of 0. Returns the sizes of the shards."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LAYOUT.config(spec)))
    shapes = tensor_shapes(LAYOUT, spec)
    limit, placed, filled = sum(map(_bytes, shapes.values())) / shards, {}, 0
    for name, shape in shapes.items():
        placed[name] = f"{LAYOUT.folder[0].removesuffix('.safetensors')}-{int(filled // limit) + 1:05}.safetensors"
        filled += _bytes(shape)
    numbers = {name: k for k, name in enumerate(shapes)}
    for file in sorted(set(placed.values())):
        _write_shard(folder / file, {name: shapes[name] for name in shapes if placed[name] == file}, numbers)
    (folder / f"{LAYOUT.folder[0]}.index.json").write_text(json.dumps({"weight_map": placed}))
    return [(folder / file).stat().st_size for file in sorted(set(placed.values()))]


def _write_shard(path: Path, shapes: Shapes, numbers: Mapping[str, int]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end := end + _bytes(shape)]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            row = np.full(shape[1:], numbers[name] / 256, jnp.bfloat16).tobytes()
            file.write(bytes(len(row)))
            for _ in range(shape[0] - 1):
                file.write(row)


def _bytes(shape: tuple[int, ...]) -> int:
    return 2 * int(np.prod(shape))


class Peak:
    """The most anonymous memory that the process has while this is open."""

    def __enter__(self) -> Peak:
        self.before = self.bytes = _anonymous()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.is_set():
            self.bytes = max(self.bytes, _anonymous())
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


def main(folder: str, width: int, double: int, single: int, shards: int) -> None:
    """Write, load, report."""
    spec = flux_spec(input_size=16, hidden_size=width, num_heads=width // 128, double=double, single=single)
    files = write_folder(Path(folder), spec, shards)
    mesh = MeshConfig(fsdp=8).build()
    start = time.perf_counter()
    with Peak() as peak:
        model = graftax.load(folder, dtype="bfloat16", mesh=mesh, input_size=16)
    seconds = time.perf_counter() - start
    leaves = jax.tree.leaves(model.params)
    qkv = model.params["blocks"]["00"]["attn"]["img"]["qkv"]["kernel"]  # (d, 3 d) of three tensors (d, d)
    print(json.dumps({
        "tensors": sum(map(_bytes, tensor_shapes(LAYOUT, spec).values())), "files": files,
        "held": sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards),
        "largest": max(leaf.nbytes for leaf in leaves), "before": peak.before, "peak": peak.bytes, "seconds": seconds,
        "types": sorted({str(leaf.dtype) for leaf in leaves}), "shard": qkv.addressable_shards[0].data.shape,
        "qkv": np.asarray(qkv[1, ::width]).astype(float).tolist() + np.asarray(qkv[1, 1::width]).astype(float).tolist(),
    }))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
