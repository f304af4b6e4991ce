"""What every operator is: a small Linen module over (b, n, d), its cost, and its names in PyTorch checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike

from graftax.ops.placement import place
from graftax.spec import OpSpec, Option


@dataclass(frozen=True)
class Cost:
    """Parameters, and forward FLOPs per image (2 x multiply-adds), split as the grafting paper's Table 4 splits them.

    `op_flops` is the operator proper (softmax attention, gating), `featurizer_flops` its projections and featurizer
    convolutions. Channel mixers are not split: everything counts as `op_flops`.
    """

    params: int
    op_flops: int
    featurizer_flops: int = 0

    @property
    def flops(self) -> int:
        """All forward FLOPs of one image."""
        return self.op_flops + self.featurizer_flops


@dataclass(frozen=True)
class TorchKey:
    """One parameter's place in both worlds.

    `leaf` is our path inside the operator ("qkv/kernel"), `name` PyTorch's ("qkv.weight"); `layout` says how to get from
    theirs to ours: "linear" transposes (out, in) to (in, out), "conv" turns (c, 1, K) into (K, c), "patch" (out, in, K, K)
    into (K, K, in, out), "same" keeps.
    """

    leaf: str
    name: str
    layout: str


def linear_keys(ours: str, theirs: str) -> tuple[TorchKey, ...]:
    """Keys of a biased linear layer."""
    return TorchKey(f"{ours}/kernel", f"{theirs}.weight", "linear"), TorchKey(f"{ours}/bias", f"{theirs}.bias", "same")


def conv_keys(ours: str, theirs: str) -> tuple[TorchKey, ...]:
    """Keys of a biased depthwise convolution."""
    return TorchKey(f"{ours}/kernel", f"{theirs}.weight", "conv"), TorchKey(f"{ours}/bias", f"{theirs}.bias", "same")


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for Linear and Conv, weight and bias alike: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class PartedDense(nn.Dense):
    """A dense layer whose features are `parts` layers side by side, like query, key and value: (..., d) -> (..., features).

    On a mesh every part's features are split by themselves, where a cut through all of them would part heads.
    """

    parts: int = 1

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        shape = (inputs.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, shape[1:], self.param_dtype)
        x, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        kernel = place(kernel.reshape(shape[0], self.parts, -1), "weights", None, "hidden")
        return (jnp.einsum("...d,dpf->...pf", x, kernel) + bias.reshape(self.parts, -1)).reshape(*x.shape[:-1], -1)


class Operator(nn.Module):
    """Base of all operators: `(b, n, d) -> (b, n, d)`.

    The fields here are what the model gives every operator; the fields a subclass adds are its options, the names and
    defaults that `OpSpec.options` may set. `init_style` is "torch" for scions (PyTorch's defaults, as in the grafting
    paper) or "dit" for a model trained from scratch (Xavier uniform, zero bias, as in DiT). `dtype` is the matmul type;
    parameters stay float32. `readout` names the last layer, a `Dense` whose output is the operator's.
    """

    width: int
    tokens: int
    num_heads: int
    dtype: DTypeLike | None = None
    init_style: str = "torch"

    kind: ClassVar[str] = ""
    slot: ClassVar[str] = "mixer"
    torch_keys: ClassVar[tuple[TorchKey, ...]] = ()
    regression_loss: ClassVar[str] = "l1"
    readout: ClassVar[str] = "out_proj"

    @classmethod
    def options(cls) -> dict[str, Option]:
        """Option names with their defaults: the fields that the subclass adds."""
        given = {f.name for f in dataclasses.fields(Operator)}
        return {f.name: f.default for f in dataclasses.fields(cls) if f.name not in given}  # pyright: ignore

    @classmethod
    def check(cls, op: OpSpec, width: int, tokens: int, num_heads: int) -> None:
        """Raise `BadInput` where the options cannot serve a model of this size. Names and types are checked already."""

    def cost(self) -> Cost:
        """Closed-form parameters and FLOPs at this width and token count."""
        raise NotImplementedError

    @classmethod
    def recognise(cls, shapes: Mapping[str, tuple[int, ...]], overrides: Mapping[str, Option]) -> dict[str, Option] | None:
        """Options read from PyTorch tensor shapes (names relative to the slot), or None where the keys are not ours.

        `overrides` holds what tensors cannot tell, such as a window.
        """
        return {} if set(shapes) == {key.name for key in cls.torch_keys} else None

    def transplant(self, fresh: dict[str, Any], donor: Operator, weights: dict[str, Any]) -> dict[str, Any] | None:
        """Initial parameters from those of the replaced operator, or None where nothing can be carried over."""
        return None

    def linear(self, features: int, fan_in: int, bias: bool = True, parts: int = 1) -> nn.Dense:
        """A dense layer initialised in this operator's style; `parts` as in `PartedDense`."""
        torch = self.init_style == "torch"
        return (nn.Dense if parts == 1 else functools.partial(PartedDense, parts=parts))(
            features,
            use_bias=bias,
            dtype=self.dtype,
            kernel_init=uniform_fan_in(fan_in) if torch else nn.initializers.xavier_uniform(),
            bias_init=uniform_fan_in(fan_in) if torch else nn.initializers.zeros,
        )

    def with_dtype(self, dtype: DTypeLike | None) -> Self:
        """The same operator computing in another type."""
        return self.clone(dtype=dtype)


def apply_with_features(operator: Operator, params: dict[str, Any], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The operator's output (b, n, d) on x (b, n, d), and the features (b, n, p) that enter its last layer.

    The output is linear in the weights of that layer, `params[operator.readout]`: features @ kernel (+ bias).
    """
    features: list[jax.Array] = []

    def watch(call: Any, inputs: tuple[Any, ...], keywords: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        if context.module.path == (operator.readout,) and context.method_name == "__call__":
            features.extend(inputs)
        return call(*inputs, **keywords)

    with nn.intercept_methods(watch):
        out: Any = operator.apply({"params": params}, x)
    return out, features[0]
