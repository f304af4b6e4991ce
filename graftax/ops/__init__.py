"""Operators by name. To add one: write its file, then name its class in `_CLASSES` (or `register` it from outside)."""

from __future__ import annotations

from typing import Any, TypeVar

from jax.typing import DTypeLike

from graftax.errors import BadInput, did_you_mean
from graftax.ops.affine import Affine, AffineMLP
from graftax.ops.attention import MHA
from graftax.ops.attention_kv import MHAKV
from graftax.ops.attention_normed import MHANormed
from graftax.ops.attention_rope import MHARope
from graftax.ops.base import Axes, Cost, Operator, TorchKey
from graftax.ops.clear import Clear
from graftax.ops.clear_normed import ClearNormed
from graftax.ops.cross import CrossMHA
from graftax.ops.dico import DiCo
from graftax.ops.gated_delta import GatedDelta
from graftax.ops.gqa import GQA
from graftax.ops.hyena import HyenaSE, HyenaX, HyenaY
from graftax.ops.hyena_2d import Hyena2D
from graftax.ops.hyena_long import HyenaLong
from graftax.ops.joint import JointMHA
from graftax.ops.joint_clear import JointClear
from graftax.ops.joint_gated_delta import JointGatedDelta
from graftax.ops.joint_gqa import JointGQA
from graftax.ops.joint_hyena import JointHyenaX
from graftax.ops.joint_hyena_2d import JointHyena2D
from graftax.ops.joint_linear import JointLinear
from graftax.ops.joint_sla import JointSLA
from graftax.ops.joint_swa_2d import JointNatten, JointSWA2D
from graftax.ops.linear import LinearAttention
from graftax.ops.linear_normed import LinearNormed
from graftax.ops.mamba2 import Mamba2
from graftax.ops.mlp import MLP
from graftax.ops.mlp_hyena import MLPHyenaX, MLPHyenaXSplit
from graftax.ops.mlp_low_rank import MLPLowRank
from graftax.ops.modulation import AdaLN, AdaLNLowRank, AdaLNNoBias, AdaLNShared, AdaLNSharedLowRank
from graftax.ops.moe import MoE
from graftax.ops.norms import LayerNorm, RMSNorm
from graftax.ops.norms_soft import NoNorm, SoftNorm
from graftax.ops.sla import SLA
from graftax.ops.swa_2d_normed import NattenNormed, SWA2DNormed
from graftax.ops.swa_normed import SWANormed
from graftax.ops.swiglu import SwiGLU
from graftax.ops.window import SWA
from graftax.ops.window_2d import SWA2D, Natten
from graftax.spec import OpSpec, Option, Sizes

_CLASSES: tuple[type[Operator], ...] = (
    MHA, MHAKV, MHANormed, MHARope, GQA, CrossMHA, SWA, SWANormed, SWA2D, SWA2DNormed, Natten, NattenNormed, Clear,
    ClearNormed, LinearAttention, LinearNormed, SLA, GatedDelta, Affine,
    HyenaX, HyenaSE, HyenaY, HyenaLong, Hyena2D, DiCo, Mamba2,
    JointMHA, JointGQA, JointClear, JointSWA2D, JointNatten, JointLinear, JointSLA, JointGatedDelta, JointHyenaX,
    JointHyena2D,
    MLP, MLPHyenaX, MLPHyenaXSplit, MLPLowRank, MoE, SwiGLU, AffineMLP,
    AdaLN, AdaLNNoBias, AdaLNShared, AdaLNSharedLowRank, AdaLNLowRank,
    LayerNorm, RMSNorm, NoNorm, SoftNorm,
)  # fmt: skip
OPERATORS: dict[str, type[Operator]] = {}
LEAF_AXES: dict[str, tuple[str | None, ...]] = {}
"""Logical axes of the kernels of all operators, by the end of their path: "qkv/kernel"."""

C = TypeVar("C", bound=type[Operator])

__all__ = ["LEAF_AXES", "OPERATORS", "Axes", "Cost", "Operator", "TorchKey", "build", "register", "resolve"]


def register(cls: C) -> C:
    """Make an operator known by its `kind`; a decorator for operators outside of this package.

    Raises `BadInput` where another one has this name, or declares other axes for an equally named kernel.
    """
    if OPERATORS.get(cls.kind, cls) is not cls:
        raise BadInput(f"operator {cls.kind!r}: registered already as {OPERATORS[cls.kind].__name__}, expected a new name")
    for path, axes in cls.axes.items():
        if LEAF_AXES.setdefault(path, axes) != axes:
            raise BadInput(f"operator {cls.kind!r} axes of {path}: {axes}, but others have {LEAF_AXES[path]}")
    OPERATORS[cls.kind] = cls
    return cls


for _cls in _CLASSES:
    register(_cls)


def operator_class(kind: str) -> type[Operator]:
    """The class registered as `kind`; raises `BadInput` listing the known names."""
    if kind not in OPERATORS:
        raise BadInput(f"operator {kind!r}: not known, expected one of {sorted(OPERATORS)}{did_you_mean(kind, OPERATORS)}")
    return OPERATORS[kind]


def resolve(op: OpSpec, role: str, sizes: Sizes) -> OpSpec:
    """`op` with every option spelled out, so that equal operators have equal specs.

    Raises `BadInput` where the operator is unknown, has another role, or an option is unknown, ill-typed or impossible at
    this size.
    """
    cls = operator_class(op.kind)
    if cls.role != role:
        fit = sorted(kind for kind, other in OPERATORS.items() if other.role == role)
        raise BadInput(f"operator {op.kind!r} has the role {cls.role}, expected one with the role {role}: {', '.join(fit)}")
    known = cls.options()
    for name, value in op.options:
        if name not in known:
            raise BadInput(
                f"operator {op.kind!r} option {name!r}: not known, expected one of {sorted(known)}"
                f"{did_you_mean(name, known)}"
            )
        known[name] = _typed(op.kind, name, value, type(known[name]))
    full = OpSpec(op.kind, tuple(known.items()))
    cls.check(full, sizes)
    return full


def _typed(kind: str, name: str, value: Option, expected: type) -> Option:
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected:
        raise BadInput(f"operator {kind!r} option {name}={value!r}: expected {expected.__name__}")
    return value


def build(op: OpSpec, sizes: Sizes, dtype: DTypeLike | None = None, init_style: str = "torch", **given: Any) -> Operator:
    """The Linen module of `op` for tokens of these sizes; `given`: the fields that its slot sets (`Operator.given`)."""
    cls = operator_class(op.kind)
    return cls(sizes, dtype, init_style, **dict(op.options), **given)  # pyright: ignore[reportArgumentType]
