"""What every operator is: a small Linen module with a role, its cost, and its names in PyTorch checkpoints."""

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
from jax.typing import ArrayLike, DTypeLike

from graftax.errors import BadInput
from graftax.ops.placement import place
from graftax.spec import OpSpec, Option, Sizes

Params = dict[str, Any]
Axes = Mapping[str, tuple[str | None, ...]]
Shapes = Mapping[str, tuple[int, ...]]
Overrides = Mapping[str, Option]

KEPT, FITTED, CHANGED = "kept", "fitted", "changed"
"""What an exchange does to the function: it stays, to the last bit or to 1e-6 where sums are taken in another order; what
comes in is fitted to it in closed form; or it is lost, and has to be taught."""

OUT_HIDDEN, IN_HIDDEN = (None, "hidden"), ("hidden", None)
"""Logical axes (in, out) of the first and of the second of a pair of projections: what lies between them never moves."""


@dataclass(frozen=True)
class Cost:
    """What an operator costs, split as the grafting paper's Table 4 splits it.

    Attributes:
        params: number of parameters.
        op_flops: forward FLOPs per image (2 x multiply-adds) of the operator proper (softmax attention, gating).
        featurizer_flops: those of its projections and featurizer convolutions. Channel mixers are not split: everything
            counts as `op_flops`.
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

    Attributes:
        leaf: our path, "qkv/kernel".
        name: PyTorch's, "qkv.weight".
        layout: how to get from theirs to ours: "linear" transposes (out, in) to (in, out), "conv" turns (c, 1, K) into
            (K, c), "patch" (out, in, K, K) into (K, K, in, out), "same" keeps.
    """

    leaf: str
    name: str
    layout: str


def linear_keys(ours: str, theirs: str) -> tuple[TorchKey, ...]:
    """Keys of a biased linear layer; `ours` "" where its kernel and bias are the operator's own."""
    path = f"{ours}/" if ours else ""
    return TorchKey(f"{path}kernel", f"{theirs}.weight", "linear"), TorchKey(f"{path}bias", f"{theirs}.bias", "same")


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
        bias = self.param("bias", self.bias_init, shape[1:], self.param_dtype) if self.use_bias else None
        x, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        kernel = place(kernel.reshape(shape[0], self.parts, -1), "weights", None, "hidden")
        out = jnp.einsum("...d,dpf->...pf", x, kernel)
        out = out if bias is None else out + bias.reshape(self.parts, -1)
        return out.reshape(*x.shape[:-1], -1)


def dense(
    features: int, fan_in: int, init_style: str, dtype: DTypeLike | None, bias: bool = True, parts: int = 1
) -> nn.Dense:
    """A dense layer inside of the module that asks for it; `init_style` as in `Operator`, `parts` as in `PartedDense`."""
    torch = init_style == "torch"
    return (nn.Dense if parts == 1 else functools.partial(PartedDense, parts=parts))(
        features,
        use_bias=bias,
        dtype=dtype,
        kernel_init=uniform_fan_in(fan_in) if torch else nn.initializers.xavier_uniform(),
        bias_init=uniform_fan_in(fan_in) if torch else nn.initializers.zeros,
    )


def silent(features: int, dtype: DTypeLike | None) -> nn.Dense:
    """A dense layer that gives zero until it is trained."""
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.zeros, bias_init=nn.initializers.zeros)


class Operator(nn.Module):
    """Base of all operators. Called with what its slot passes (a mixer: x (b, n, d) -> (b, n, d)).

    The fields here, and those that `given` names, are what the model gives every operator; the fields a subclass adds are
    its options, the names and defaults that `OpSpec.options` may set.

    Attributes:
        sizes: of the tokens that it works on.
        dtype: matmul type; parameters stay float32.
        init_style: "torch" for scions (PyTorch's defaults, as in the grafting paper) or "dit" for a model trained from
            scratch (Xavier uniform, zero bias, as in DiT).
        kind: its name.
        role: which slots it fits: "mixer" (of tokens), "channel" (mixer of channels), "modulation", "norm", "cross" (tokens
            look at a text), "joint" (mixer of several streams).
        reads: names of the fields of `graftax.blocks.Context` that it is called with, as keywords.
        given: fields that its slot sets, which are no options.
        torch_keys: its parameters in PyTorch files, names relative to the slot's.
        axes: logical axes of its kernels by the end of their path, "qkv/kernel", where one is "hidden" (for
            `graftax.train.sharding`); of kernels that are its own the end begins with its kind.
        regression_loss: loss that stage 1 teaches it with, unless told otherwise.
        readout: its last layer, a `Dense` whose output is the operator's; "" where there is none.
        default_init: where its weights come from when it is grafted, unless told otherwise (`graftax.replace`).
    """

    sizes: Sizes
    dtype: DTypeLike | None = None
    init_style: str = "torch"

    kind: ClassVar[str] = ""
    role: ClassVar[str] = "mixer"
    reads: ClassVar[tuple[str, ...]] = ()
    given: ClassVar[tuple[str, ...]] = ()
    torch_keys: ClassVar[tuple[TorchKey, ...]] = ()
    axes: ClassVar[Axes] = {}
    regression_loss: ClassVar[str] = "l1"
    readout: ClassVar[str] = "out_proj"
    default_init: ClassVar[str] = "random"

    @property
    def width(self) -> int:
        """Channels d of a token."""
        return self.sizes.width

    @property
    def tokens(self) -> int:
        """Tokens n that it works on."""
        return self.sizes.tokens

    @property
    def needs_grid(self) -> bool:
        """Whether it must have all tokens of the image, each in its place on the grid, and cannot work on some of them."""
        return False

    @classmethod
    def options(cls) -> dict[str, Option]:
        """Option names with their defaults: the fields that the subclass adds."""
        given = {f.name for f in dataclasses.fields(Operator)} | set(cls.given)
        return {f.name: f.default for f in dataclasses.fields(cls) if f.name not in given}  # pyright: ignore

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        """Raise `BadInput` where the options cannot serve a model of this size. Names and types are checked already."""

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Zeros to initialise it on: positional arguments, and one keyword for each of `reads`."""
        return (jnp.zeros((1, self.tokens, self.width)),), {}

    def cost(self) -> Cost:
        """Closed-form parameters and FLOPs at this width and token count."""
        raise NotImplementedError

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        """Options read from PyTorch tensor shapes (names relative to the slot), or None where the keys are not ours.

        `overrides` holds what tensors cannot tell, such as a window.
        """
        return {} if set(shapes) == {key.name for key in cls.torch_keys} else None

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """Initial parameters from those of the replaced operator, or None where nothing can be carried over.

        `importance` (m,) ranks the donor's neurons where there are fewer of them here (`chooses`).
        """
        return None

    def start(self, donor: Operator) -> str:
        """What becomes of the function where `transplant` puts this in the donor's place: `KEPT`, `FITTED` or `CHANGED`."""
        return KEPT if self == donor else CHANGED

    def gains(self, weights: Params, x: Any, wanted: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Scales (c,) that least squares fit without a step: by path, what each multiplies (..., c), and what should come
        out of that, on inputs x where the replaced operator gave `wanted`."""
        return {}

    def chooses(self, donor: Operator) -> bool:
        """Whether `transplant` takes the most important of the donor's neurons, and so must know which these are."""
        return False

    def linear(self, features: int, fan_in: int, bias: bool = True, parts: int = 1) -> nn.Dense:
        """A dense layer initialised in this operator's style; `parts` as in `PartedDense`."""
        return dense(features, fan_in, self.init_style, self.dtype, bias, parts)

    def with_dtype(self, dtype: DTypeLike | None) -> Self:
        """The same operator computing in another type."""
        return self.clone(dtype=dtype)


def call(module: nn.Module, params: Any, *inputs: Any, **keywords: Any) -> jax.Array:
    """A Linen module that returns one array, applied to its plain parameters."""
    return module.apply({"params": params}, *inputs, **keywords)  # pyright: ignore[reportReturnType]


def shapes_of(operator: Operator) -> Params:
    """Shapes of an operator's parameters as a nested dict of `jax.ShapeDtypeStruct`; {} where it has none."""
    return _shapes_of(operator.clone(dtype=None, init_style="torch"))  # pyright: ignore[reportArgumentType]


@functools.lru_cache(maxsize=1024)
def _shapes_of(operator: Operator) -> Params:
    def init(key: jax.Array) -> Any:
        inputs, reads = operator.example()
        return operator.init(key, *inputs, **reads)

    return dict(jax.eval_shape(init, jax.random.key(0)).get("params", {}))


def carried(fresh: Params, weights: Params) -> Params:
    """`fresh` with every part that `weights` have under the same name, in the same shapes, taken from there."""
    shapes, theirs = (jax.tree.map(jnp.shape, tree) for tree in (fresh, weights))
    return {name: weights[name] if theirs.get(name) == shapes[name] else part for name, part in fresh.items()}


def check_grid(kind: str, sizes: Sizes) -> None:
    """Raise `BadInput` where an operator on the image's grid would meet tokens of a text as well."""
    if sizes.text:
        raise BadInput(f"{kind}: works on the image's grid alone, got {sizes.text} tokens of text with it")


def apply_with_features(operator: Operator, params: Params, *inputs: Any, **reads: Any) -> tuple[jax.Array, jax.Array]:
    """The operator's output (b, n, d) on x (b, n, d), and the features (b, n, p) that enter its last layer.

    The output is linear in the weights of that layer, `params[operator.readout]`: features @ kernel (+ bias).
    """
    features: list[jax.Array] = []

    def watch(call: Any, inputs: tuple[Any, ...], keywords: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        if context.module.path == (operator.readout,) and context.method_name == "__call__":
            features.extend(inputs)
        return call(*inputs, **keywords)

    with nn.intercept_methods(watch):
        out: Any = operator.apply({"params": params}, *inputs, **reads)
    return out, features[0]
