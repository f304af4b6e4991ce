"""Mixture of experts: several MLPs, of which every token asks a few."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.typing import ArrayLike, DTypeLike

from graftax.errors import BadInput
from graftax.ops.base import (
    CHANGED,
    IN_HIDDEN,
    KEPT,
    OUT_HIDDEN,
    Axes,
    Cost,
    Operator,
    Overrides,
    Params,
    Shapes,
    TorchKey,
    uniform_fan_in,
)
from graftax.ops.mlp import MLP, gelu
from graftax.ops.placement import on_parts, place
from graftax.ops.target import target
from graftax.spec import OpSpec, Option, Sizes


def all_experts(x: jax.Array, gates: jax.Array, first: Params, second: Params) -> jax.Array:
    """sum_e gate_e MLP_e(x) by all experts on all tokens: x (b, n, d), gates (b, n, e) -> (b, n, d).

    `first` and `second`: kernels (e, d, m) and (e, m, d), biases (e, m) and (e, d).
    """
    hidden = jnp.einsum("bnd,edm->bnem", x, place(first["kernel"], None, "weights", "hidden")) + first["bias"]
    hidden = gelu(place(hidden, "batch", None, None, "hidden")) * gates[..., None]
    return jnp.einsum("bnem,emd->bnd", hidden, second["kernel"]) + gates @ second["bias"]


def asked_experts(x: jax.Array, gates: jax.Array, first: Params, second: Params, top: int) -> jax.Array:
    """`all_experts` where only `top` gates of a token are not zero: tokens sorted by expert, each by its own (ragged
    products). No expert has a limit, so none turns a token away."""

    def run(x: jax.Array, gates: jax.Array, *leaves: jax.Array) -> jax.Array:
        weights, asked = jax.lax.top_k(gates.reshape(-1, gates.shape[-1]), top)  # (b n, top)
        order = jnp.argsort(asked.ravel())
        token, expert = order // top, asked.ravel()[order]
        sizes = jnp.bincount(expert, length=gates.shape[-1]).astype(jnp.int32)
        in_kernel, in_bias, out_kernel, out_bias = leaves
        flat = x.reshape(-1, x.shape[-1])
        hidden = gelu(jax.lax.ragged_dot(flat[token], in_kernel, sizes) + in_bias[expert])
        answer = jax.lax.ragged_dot(hidden, out_kernel, sizes) + out_bias[expert]
        return jnp.zeros_like(flat).at[token].add(answer * weights.ravel()[order, None]).reshape(x.shape)

    tokens = ("batch", None, None)
    leaves = (first["kernel"], first["bias"], second["kernel"], second["bias"])
    return on_parts(run, (tokens, tokens, *((None,) * leaf.ndim for leaf in leaves)))(x, gates, *leaves)


class ExpertDense(nn.Module):
    """The weights of one layer of every expert, kernel (e, in, out) and bias (e, out), in the type to compute in.

    Attributes:
        experts: how many, e.
        fan_in: numbers that go into a layer.
        features: numbers that come out.
        init_style: as in `Operator`.
    """

    experts: int
    fan_in: int
    features: int
    init_style: str

    @nn.compact
    def __call__(self, dtype: DTypeLike | None) -> Params:
        torch = self.init_style == "torch"
        kernel_init = uniform_fan_in(self.fan_in) if torch else nn.initializers.xavier_uniform(batch_axis=(0,))
        bias_init = uniform_fan_in(self.fan_in) if torch else nn.initializers.zeros
        kernel = self.param("kernel", kernel_init, (self.experts, self.fan_in, self.features), jnp.float32)
        bias = self.param("bias", bias_init, (self.experts, self.features), jnp.float32)
        kernel, bias = promote_dtype(kernel, bias, dtype=dtype)
        return {"kernel": kernel, "bias": bias}


class MoE(Operator):
    """sum_i g_i MLP_i(x) over the `top` experts with the largest r_i = softmax(x W_r)_i, g_i = r_i over their sum.

    Top-k routing token by token (Shazeer et al., arXiv 1701.06538, Section 2), with gates that add up to one as in Sparse
    Upcycling (arXiv 2212.05055, Section 3): taken over from an MLP every expert is a copy of it, so that the model computes
    the same at first whatever the router, drawn at random, says. With one expert asked the router would not learn.

    Shapes are static and no token is dropped: CPUs run all experts on all tokens, other platforms sort the tokens
    by expert. `cost` counts those that are asked. There is no loss that balances experts.

    Attributes:
        experts: how many.
        top: how many of them a token asks.
        ratio: hidden width of an expert over d.
    """

    experts: int = 4
    top: int = 2
    ratio: float = 4.0

    kind = "moe"
    role = "channel"
    regression_loss = "l2"
    readout = ""
    torch_keys = (
        TorchKey("router/kernel", "router.weight", "linear"),
        *(
            TorchKey(f"{layer}/{ours}", f"experts.{layer}.{theirs}", "same")
            for layer in ("fc1", "fc2") for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
        ),
    )  # fmt: skip
    axes: ClassVar[Axes] = {"fc1/kernel": OUT_HIDDEN, "fc2/kernel": IN_HIDDEN}

    @property
    def hidden(self) -> int:
        """Width between an expert's two layers."""
        return round(self.ratio * self.width)

    def setup(self) -> None:
        self.router = self.linear(self.experts, self.width, bias=False).clone(dtype=jnp.float32)
        self.fc1 = ExpertDense(self.experts, self.width, self.hidden, self.init_style)
        self.fc2 = ExpertDense(self.experts, self.hidden, self.width, self.init_style)

    def __call__(self, x: jax.Array) -> jax.Array:
        (x,) = promote_dtype(x, dtype=self.dtype)
        gates = self.gates(x).astype(x.dtype)
        layers = self.fc1(x.dtype), self.fc2(x.dtype)
        return all_experts(x, gates, *layers) if target() == "cpu" else asked_experts(x, gates, *layers, self.top)

    def gates(self, x: jax.Array) -> jax.Array:
        """What every expert counts for tokens x (b, n, d), zero for those that are not asked: (b, n, e) float32."""
        likely = nn.softmax(self.router(x.astype(jnp.float32)))
        best, asked = jax.lax.top_k(likely, self.top)  # (b, n, top)
        shares = best / best.sum(-1, keepdims=True)
        return jnp.einsum("bnt,bnte->bne", shares, jax.nn.one_hot(asked, self.experts))

    def cost(self) -> Cost:
        d, m, n = self.width, self.hidden, self.tokens
        return Cost(
            self.experts * (2 * d * m + d + m) + d * self.experts, self.top * 4 * n * d * m + 2 * n * d * self.experts
        )

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        MLP.check(op, sizes)
        if not 1 <= op.option("top") <= op.option("experts"):
            raise BadInput(f"moe top: got {op.option('top')}, expected 1 to the {op.option('experts')} experts")

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        if super().recognise(shapes, overrides) is None or len(shapes["experts.fc1.weight"]) != 3:
            return None
        experts, width, hidden = shapes["experts.fc1.weight"]
        return {"experts": experts, "top": overrides.get("top", cls.options()["top"]), "ratio": hidden / width}

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """An MLP of the same hidden width for every expert, with a router drawn at random; or all of another mixture's."""
        if isinstance(donor, MoE) and (donor.experts, donor.hidden) == (self.experts, self.hidden):
            return weights
        if not isinstance(donor, MLP) or donor.hidden != self.hidden:
            return None
        copies = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], self.experts, axis=0), donor.layers(weights))
        return {"router": fresh["router"], **copies}

    def start(self, donor: Operator) -> str:
        if isinstance(donor, MoE):
            return KEPT if self == donor else CHANGED
        return KEPT if isinstance(donor, MLP) and donor.hidden == self.hidden else CHANGED
