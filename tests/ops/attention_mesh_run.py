"""Script: full attention by tiles and by the splash kernel on 4 simulated devices; prints what came out as JSON."""

from __future__ import annotations

import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4 --xla_cpu_use_fusion_emitters=false"
os.environ["JAX_PLATFORMS"] = "cpu"

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from graftax.evaluate.aot.hlo import collectives
from graftax.ops.attention import attend
from graftax.ops.blockwise import blockwise_attention
from graftax.ops.kernels import HEADS, splash_attention
from graftax.ops.placement import place
from graftax.train import MeshConfig
from graftax.train.sharding import activation_spec, activations, mesh_of

FORMS = {
    "tiles": functools.partial(blockwise_attention, block=(16, 32)),
    "splash": functools.partial(splash_attention, block=128, interpret=True),
}


def gradients(form: Any, mesh: Any, *arrays: jax.Array) -> list[jax.Array]:
    """Result and gradients of q, k, v; on the mesh they are held to their parts, as a model holds them."""
    with activations(mesh):
        q, k, v, g, keys = arrays
        out, back = jax.vjp(lambda *qkv: form(*qkv, keys), *(place(a, *HEADS) for a in (q, k, v)))
        return [place(a, *HEADS) for a in (out, *back(g))]


def main() -> dict[str, Any]:
    mesh = MeshConfig(fsdp=2, tensor=2).build()
    rng = np.random.default_rng(0)
    q, k, v, g = (rng.standard_normal((2, n, 4, 8), np.float32) for n in (48, 70, 70, 48))
    keys = rng.random((2, 70)) < 0.7
    spread = [
        jax.device_put(a, NamedSharding(mesh, activation_spec(HEADS[: a.ndim], a.shape, mesh))) for a in (q, k, v, g, keys)
    ]
    dense = lambda q, k, v, keys: attend(q, k, v, keys[:, None, None])  # noqa: E731
    expected = jax.jit(functools.partial(gradients, dense, None))(*map(jnp.asarray, (q, k, v, g, keys)))
    found: dict[str, Any] = {"mesh_of": [mesh_of((q, spread)) == mesh, mesh_of((q, expected)) is None]}
    for name, form in FORMS.items():
        compiled = jax.jit(functools.partial(gradients, form, mesh)).lower(*spread).compile()
        parts = compiled(*spread)
        found[name] = {
            "errors": [float(abs(a - e).max() / abs(e).max()) for a, e in zip(parts, expected, strict=True)],
            "shards": [a.addressable_shards[0].data.size / a.size for a in parts],
            "collectives": sorted(collectives(compiled.as_text() or "")),
        }
    return found


if __name__ == "__main__":
    print(json.dumps(main()))
