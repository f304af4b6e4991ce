"""What operators of one kind compute once a pass for all blocks that hold them, from weights that stand outside the blocks.

`params["shared"]["adaln_shared"]` is the linear map that PixArt's blocks share. An operator says by `shared_part` that it
has such weights; everything else about them is here.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax.blocks import Context, build
from graftax.errors import BadInput
from graftax.models.collect import places
from graftax.ops.base import Params, call
from graftax.ops.modulation import Modulation, SiluLinear
from graftax.spec import ModelSpec

SHARED = "shared"
"""Where a parameter tree keeps them."""


def shared_parts(spec: ModelSpec, dtype: DTypeLike | None = None) -> dict[str, SiluLinear]:
    """The shared parts of a model by the kind of the operators that have them.

    Raises `BadInput` where operators of one kind do not agree in theirs.
    """
    found: dict[str, SiluLinear] = {}
    for kind, slot, op in places(spec):
        operator = build(spec, kind, slot, op, dtype)
        own = operator.shared_part() if isinstance(operator, Modulation) else None
        if own is None:
            continue
        if (other := found.setdefault(op.kind, own)) != own:
            raise BadInput(f"{op.kind}: slots of {other.features} and of {own.features} features, expected them alike")
    return found


def with_shared(spec: ModelSpec, params: Params, context: Context, dtype: DTypeLike | None) -> Context:
    """`context` with what the model's operators share."""
    parts = shared_parts(spec, dtype)
    if not parts:
        return context
    values = {kind: call(part, params[SHARED][kind], context.vec) for kind, part in parts.items()}
    return dataclasses.replace(context, shared=values)


class Shared(nn.Module):
    """All shared parts of a model as one module, for initialisation.

    Attributes:
        spec: the model's.
    """

    spec: ModelSpec

    @nn.compact
    def __call__(self) -> None:
        for kind, part in shared_parts(self.spec).items():
            part.clone(parent=self, name=kind)(jnp.zeros((1, self.spec.width)))


def shared_shapes(spec: ModelSpec) -> Params:
    """Shapes of the shared parts' parameters, {} where there are none."""
    if not shared_parts(spec):
        return {}
    return dict(jax.eval_shape(lambda key: Shared(spec).init(key), jax.random.key(0))["params"])
