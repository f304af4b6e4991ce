"""Operators by name. To add one: write its file, then name its class in `_CLASSES`."""

from __future__ import annotations

from jax.typing import DTypeLike

from graftax.errors import BadInput
from graftax.ops.attention import MHA
from graftax.ops.base import Cost, Operator, TorchKey
from graftax.ops.hyena import HyenaSE, HyenaX, HyenaY
from graftax.ops.hyena_2d import Hyena2D
from graftax.ops.hyena_long import HyenaLong
from graftax.ops.mamba2 import Mamba2
from graftax.ops.mlp import MLP
from graftax.ops.mlp_hyena import MLPHyenaX, MLPHyenaXSplit
from graftax.ops.window import SWA
from graftax.ops.window_2d import SWA2D
from graftax.spec import ModelSpec, OpSpec, Option

_CLASSES: tuple[type[Operator], ...] = (
    MHA, SWA, SWA2D, HyenaX, HyenaSE, HyenaY, HyenaLong, Hyena2D, Mamba2,
    MLP, MLPHyenaX, MLPHyenaXSplit,
)  # fmt: skip
OPERATORS: dict[str, type[Operator]] = {cls.kind: cls for cls in _CLASSES}

__all__ = ["OPERATORS", "Cost", "Operator", "TorchKey", "build", "resolve"]


def operator_class(kind: str) -> type[Operator]:
    """The class registered as `kind`; raises `BadInput` listing the known names."""
    if kind not in OPERATORS:
        raise BadInput(f"operator {kind!r}: not known, expected one of {sorted(OPERATORS)}")
    return OPERATORS[kind]


def resolve(op: OpSpec, slot: str, width: int, tokens: int, num_heads: int) -> OpSpec:
    """`op` with every option spelled out, so that equal operators have equal specs.

    Raises `BadInput` where the operator is unknown, belongs to the other slot, or an option is unknown, ill-typed or
    impossible at this size.
    """
    cls = operator_class(op.kind)
    if cls.slot != slot:
        raise BadInput(f"operator {op.kind!r} is a {cls.slot}, expected a {slot}")
    known = cls.options()
    for name, value in op.options:
        if name not in known:
            raise BadInput(f"operator {op.kind!r} option {name!r}: not known, expected one of {sorted(known)}")
        known[name] = _typed(op.kind, name, value, type(known[name]))
    full = OpSpec(op.kind, tuple(sorted(known.items())))
    cls.check(full, width, tokens, num_heads)
    return full


def _typed(kind: str, name: str, value: Option, expected: type) -> Option:
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected:
        raise BadInput(f"operator {kind!r} option {name}={value!r}: expected {expected.__name__}")
    return value


def build(op: OpSpec, spec: ModelSpec, dtype: DTypeLike | None = None, init_style: str = "torch") -> Operator:
    """The Linen module of `op` inside a model of `spec`'s sizes."""
    cls = operator_class(op.kind)
    return cls(spec.hidden_size, spec.tokens, spec.num_heads, dtype, init_style, **dict(op.options))  # pyright: ignore[reportArgumentType]
