"""Script: the kernels of Hyena-X and of block-sparse attention on 4 simulated devices; prints as JSON how far each part is
from the plain form on one, gradients and those of weights included, how much of each lies on a device, and what was sent."""

from __future__ import annotations

import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4 --xla_cpu_use_fusion_emitters=false"
os.environ["JAX_PLATFORMS"] = "cpu"

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from graftax.evaluate.aot.hlo import collectives
from graftax.ops import build, resolve, sla
from graftax.ops.base import call
from graftax.ops.kernels import HEADS
from graftax.ops.pallas import hyena, sparse
from graftax.ops.placement import Axes, place
from graftax.ops.target import compiling_for
from graftax.spec import Sizes, op
from graftax.train import MeshConfig
from graftax.train.sharding import activation_spec, activations

TOKENS: Axes = ("batch", None, None)


def gradients(form: Callable[..., Any], axes: Sequence[Axes], platform: str, mesh: Any, g: Any, *args: Any) -> list[Any]:
    """Result of `form` and gradients of its arguments, all held to `axes` where there is a mesh."""
    with compiling_for(platform, "TPU v5 lite"), activations(mesh):
        out, back = jax.vjp(form, *(place(a, *names) for a, names in zip(args, axes, strict=True)))
        return [place(a, *names) for a, names in zip((out, *back(g)), (axes[0], *axes), strict=True)]


def compared(form: Callable[..., Any], axes: Sequence[Axes], mesh: Any, arrays: Sequence[np.ndarray]) -> dict[str, Any]:
    """`gradients` by kernels on the mesh against the plain form on one device; `arrays` begin with the result's gradient."""
    expected = jax.jit(functools.partial(gradients, form, axes, "cpu", None))(*arrays)
    spread = [
        jax.device_put(a, NamedSharding(mesh, activation_spec(names, a.shape, mesh)))
        for names, a in zip((axes[0], *axes), arrays, strict=True)
    ]
    run = jax.jit(functools.partial(gradients, form, axes, "tpu", mesh))
    compiled = run.lower(*spread).compile()
    parts = compiled(*spread)
    return {
        "errors": [float(abs(a - e).max() / abs(e).max()) for a, e in zip(parts, expected, strict=True)],
        "shards": [a.addressable_shards[0].data.size / a.size for a in parts],
        "collectives": sorted(collectives(compiled.as_text() or "")),
        "kernels": str(jax.make_jaxpr(run)(*spread)).count("pallas_call"),
    }


def main() -> dict[str, Any]:
    hyena.gated_conv = functools.partial(hyena.gated_conv, interpret=True)
    sparse.block_sparse_attention = functools.partial(sparse.block_sparse_attention, interpret=True)
    draw = functools.partial(np.random.default_rng(0).standard_normal, dtype=np.float32)
    sizes = Sizes(width=128, heads=2, head_dim=64, grid=(16, 8))
    mixer = build(resolve(op("hyena_x"), "mixer", sizes), sizes)
    x = draw((4, 128, 128))
    leaves, tree = jax.tree.flatten(jax.jit(mixer.init)(jax.random.key(0), x)["params"])
    mix = lambda x, *leaves: call(mixer, jax.tree.unflatten(tree, leaves), x)  # noqa: E731
    axes = [TOKENS, *(((None,) * leaf.ndim) for leaf in leaves)]
    tokens = (draw(x.shape), x, *map(np.asarray, leaves))
    q, k, v, g = (draw((2, n, 4, 8)) for n in (256, 300, 300, 256))
    chosen = jax.jit(sla.chosen_blocks, static_argnums=(2, 3))(q, k, 32, 3)
    attend = lambda q, k, v: sla.sparse_attention(q, k, v, jnp.asarray(np.asarray(chosen)), 32)  # noqa: E731
    both = MeshConfig(fsdp=2, tensor=2).build()
    return {
        "hyena": compared(mix, axes, MeshConfig(fsdp=4).build(), tokens),
        "hyena split": compared(mix, axes, both, tokens),
        "sparse": compared(attend, [HEADS] * 3, both, (g, q, k, v)),
    }


if __name__ == "__main__":
    print(json.dumps(main()))
