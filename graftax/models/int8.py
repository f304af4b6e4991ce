"""A model whose blocks keep their weights in eight bits, for sampling with a quarter of the memory: `quantised(model)`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from graftax.errors import BadInput
from graftax.models.lora import materialise
from graftax.models.model import Model

INT8 = "int8"
"""What `graftax.load` calls it."""


def quantised(model: Model) -> Model:
    """`model` with every kernel (in, out) of its blocks as int8 and one float scale for each output channel.

    What is multiplied stays in the type of the model: weights alone are rounded, each to the nearest of 255 levels between
    minus and plus the largest of its column (symmetric "absmax" quantization, computed by qwix). Embedders, the head, biases
    and vectors are left as they are. Adapters are folded in first. The model samples and answers as any other; it cannot
    be edited, trained or saved: do these before. Raises `BadInput` where qwix is missing (extra `int8`).
    """
    try:
        import qwix
    except ImportError:
        raise BadInput("int8: qwix is not installed, expected the extra graftax[int8]") from None
    params = materialise(model.spec, model.params)
    leaves: dict[tuple[str, ...], Any] = flatten_dict(params)
    for path, leaf in leaves.items():
        if path[0] == "blocks" and path[-1] == "kernel" and leaf.ndim == 2:
            leaves[path] = jax.jit(lambda w: qwix.quantize(w, jnp.int8, channelwise_axes=(1,)))(leaf)
    return model.replace(params=unflatten_dict(leaves), spec=model.spec.replace(adapters=()))
