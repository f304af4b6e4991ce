"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685): kernels W that act as W + alpha / rank * a b.

The adapters of a model are its spec's `adapters`, their weights `params["lora"]`, a tree of the kernels' own paths:
`params["lora"]["blocks"]["03"]["mixer"]["qkv"]["kernel"]["a"]`. The forward pass folds them into the kernels before
anything runs, so no operator, plan or tap knows of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from graftax.errors import BadInput
from graftax.models.collect import spread
from graftax.ops.base import Params, uniform_fan_in
from graftax.spec import Adapter, ModelSpec

LORA = "lora"
"""Where a parameter tree keeps the weights of adapters."""


def init_adapters(key: jax.Array, adapters: Sequence[Adapter], params: Mapping[str, Any]) -> Params:
    """Fresh weights of `adapters` on the kernels (m, n) in `params`: a (m, rank) uniform in +-1 / sqrt(m), b (rank, n) zero.

    With b at zero an adapter does nothing at first (LoRA, Section 4.1; a is drawn as in the reference implementation,
    loralib). The values depend on the key and the adapter's path alone. Raises `BadInput` where no kernel of two axes is
    at a path.
    """
    leaves: dict[str, Any] = flatten_dict(dict(params), sep="/")
    out: dict[str, Any] = {}
    for adapter in adapters:
        m, n = _kernel_shape(adapter, leaves)
        path_key = jax.random.fold_in(key, zlib.crc32(adapter.path.encode()))
        out[f"{adapter.path}/a"] = uniform_fan_in(m)(path_key, (m, adapter.rank))
        out[f"{adapter.path}/b"] = jnp.zeros((adapter.rank, n))
    return unflatten_dict(out, sep="/")


def adapter_shapes(adapters: Sequence[Adapter], params: Mapping[str, Any]) -> Params:
    """Shapes of what `init_adapters` makes, from the kernels' shapes in `params`."""
    return jax.eval_shape(lambda: init_adapters(jax.random.key(0), adapters, params))


def materialise(spec: ModelSpec, params: Params) -> Params:
    """The plain parameter tree that computes what `params` with its adapters does; `params` itself where it has none.

    Every kernel (m, n) with an adapter becomes W + alpha / rank * a b, in float32; other leaves are the same objects, and
    "lora" is gone. Blocks may come collected (`graftax.models.collect`); they leave it plain. Costs 2 m n rank FLOPs per
    adapter and once the memory of the kernels: little beside a pass over a batch, and sampling does it once.
    """
    if not spec.adapters:
        return params
    leaves: dict[str, Any] = flatten_dict(spread(spec, params), sep="/")
    for adapter in spec.adapters:
        a, b = (leaves[f"{LORA}/{adapter.path}/{name}"] for name in "ab")
        update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)  # (m, rank) (rank, n) -> (m, n)
        leaves[adapter.path] = leaves[adapter.path] + adapter.alpha / adapter.rank * update
    return unflatten_dict({path: leaf for path, leaf in leaves.items() if not path.startswith(f"{LORA}/")}, sep="/")


def count_adapters(adapters: Sequence[Adapter], params: Mapping[str, Any]) -> int:
    """Parameters of `adapters` on the kernels in `params` (arrays or shapes)."""
    leaves: dict[str, Any] = flatten_dict(dict(params), sep="/")
    return sum(adapter.rank * sum(_kernel_shape(adapter, leaves)) for adapter in adapters)


def _kernel_shape(adapter: Adapter, leaves: Mapping[str, Any]) -> tuple[int, int]:
    kernel = leaves.get(adapter.path)
    if kernel is None or kernel.ndim != 2:
        found = "no parameter" if kernel is None else f"shape {kernel.shape}"
        raise BadInput(f"adapter {adapter.path}: {found} at that path, expected a kernel of two axes")
    return kernel.shape
