"""Self-attention as text-to-image models of two streams have it: norms of queries and keys, rotary positions, few biases."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from graftax.errors import BadInput, did_you_mean
from graftax.ops.attention import MHA
from graftax.ops.base import Cost, Operator, Overrides, Params, Shapes, TorchKey, call
from graftax.ops.norms import layer_norm, rms_norm
from graftax.ops.placement import place
from graftax.ops.rope import Rope, rotate
from graftax.spec import OpSpec, Option, Sizes

NORMS = ("none", "rms", "layer", "layer_affine")
"""Of queries and keys, head by head: "rms" with a scale (Flux, SD3.5, LightningDiT, DDT), "layer" without one (AuraFlow),
"layer_affine" with a scale and a bias (REPA)."""

BIASES = {"all": (True, True), "in": (True, False), "out": (False, True), "none": (False, False)}
"""Which projections have a bias, those of queries, keys and values, and the last: both, the first alone (Flux's single
blocks), the last alone (DDT), or none (AuraFlow)."""


class HeadNorm(nn.Module):
    """A head's channels normalised: (b, t, h, k) -> the same, float32.

    Attributes:
        norm: one of `NORMS`.
    """

    norm: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.norm == "layer":
            return layer_norm(x, 1e-5)
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        if self.norm == "rms":
            return rms_norm(x, 1e-6) * scale
        return layer_norm(x, 1e-5) * scale + self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)


def norm_params(norm: str, head_dim: int) -> int:
    """Parameters of the norms of queries and keys, both together."""
    return 2 * head_dim * {"rms": 1, "layer_affine": 2}.get(norm, 0)


def check_attention(op: OpSpec) -> None:
    """Raise `BadInput` where `qk_norm` or `bias` of an operator that has it is none of those that there are."""
    for name, known in {"qk_norm": NORMS, "bias": tuple(BIASES)}.items():
        if (value := op.option(name, known[0])) not in known:
            raise BadInput(f"{op.kind} {name}: got {value!r}, expected one of {known}{did_you_mean(str(value), known)}")


def _sizes_before(qkv: Params, sizes: Sizes) -> Params:
    """Scales of norms that leave queries and keys about as large as the projections `qkv` make them of tokens whose channels
    have variance 1, as a norm leaves them: root mean squares (k,), over heads."""
    kernel = qkv["kernel"].reshape(-1, 3, sizes.heads, sizes.head_dim)
    bias = qkv["bias"].reshape(kernel.shape[1:]) if "bias" in qkv else 0.0
    q, k, _ = jnp.sqrt((jnp.square(kernel).sum(0) + jnp.square(bias)).mean(1))
    return {"q_norm": {"scale": q}, "k_norm": {"scale": k}}


def turned(q: jax.Array, k: jax.Array, rope: Rope | None) -> tuple[jax.Array, jax.Array]:
    """Queries and keys (b, t, h, k) at their rotary positions, where there are any."""
    return (q, k) if rope is None else (rotate(q, rope), rotate(k, rope))


class MHANormed(MHA):
    """`MHA` whose queries and keys are normalised head by head, then turned by the context's rotary positions.

    softmax(R norm(q) (R norm(k))^T / sqrt(head dim)) v, as in Flux's and AuraFlow's single blocks, the second attention of
    SD3.5-medium (diffusers' FluxAttention, Attention with qk_norm), LightningDiT and DDT. The norms' scales start at 1.

    Attributes:
        qk_norm: one of `NORMS`.
        bias: one of `BIASES`.
    """

    qk_norm: str = "rms"
    bias: str = "all"

    kind = "mha_normed"
    reads = ("rope",)
    torch_keys = (
        *MHA.torch_keys, TorchKey("q_norm/scale", "ln_q.weight", "same"), TorchKey("k_norm/scale", "ln_k.weight", "same"),
        TorchKey("q_norm/bias", "ln_q.bias", "same"), TorchKey("k_norm/bias", "ln_k.bias", "same"),
    )  # fmt: skip

    def setup(self) -> None:
        first, last = BIASES[self.bias]
        self.qkv = self.linear(3 * self.inner, self.width, bias=first, parts=3)
        self.proj = self.linear(self.width, self.inner, bias=last)
        if self.qk_norm != "none":
            self.q_norm, self.k_norm = HeadNorm(self.qk_norm), HeadNorm(self.qk_norm)

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (jnp.zeros((1, self.tokens, self.width)),), {"rope": None}

    def __call__(self, x: jax.Array, *, rope: Rope | None) -> jax.Array:
        q, k, v = self.heads_of(x)  # (b, n, h, k) each
        if self.qk_norm != "none":
            q, k = self.q_norm(q), self.k_norm(k)
        mixed = self.mix_placed(q, k, v, rope)
        return self.proj(place(mixed.reshape(*x.shape[:2], self.inner), "batch", None, "hidden"))

    def mix_placed(self, q: jax.Array, k: jax.Array, v: jax.Array, rope: Rope | None) -> jax.Array:
        """The attention proper of normed queries and keys, float32, and values, (b, n, h, k) each, at their positions."""
        q, k = self.turn(q, k, rope)
        return self.mix(q.astype(v.dtype), k.astype(v.dtype), v)

    def turn(self, q: jax.Array, k: jax.Array, rope: Rope | None) -> tuple[jax.Array, jax.Array]:
        """Queries and keys (b, t, h, k) at their places."""
        return turned(q, k, rope)

    def cost(self) -> Cost:
        plain, scales = super().cost(), norm_params(self.qk_norm, self.sizes.head_dim)
        first, last = BIASES[self.bias]
        missing = 3 * self.inner * (not first) + self.width * (not last)
        return Cost(plain.params + scales - missing, plain.op_flops, plain.featurizer_flops)

    def transplant(
        self, fresh: Params, donor: Operator, weights: Params, importance: ArrayLike | None = None
    ) -> Params | None:
        """Another attention's projections as far as there are biases for them; its norms where they are of this kind, else
        scales that give queries and keys the size that they had (`_sizes_before`)."""
        if not isinstance(donor, MHA):
            return None
        layers = donor.projections(weights).items()
        taken = {
            name: {leaf: layer.get(leaf, jnp.zeros_like(old)) for leaf, old in fresh[name].items()} for name, layer in layers
        }
        before = _sizes_before(taken["qkv"], self.sizes)
        norms = {name: weights.get(name, {**fresh[name], **before[name]}) for name in ("q_norm", "k_norm") if name in fresh}
        alike = all(jax.tree.map(jnp.shape, norm) == jax.tree.map(jnp.shape, fresh[name]) for name, norm in norms.items())
        return {**fresh, **taken, **(norms if alike else {})}

    def gains(self, weights: Params, x: Any, wanted: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
        """The scales of its norms, from queries and keys as they were without."""
        if "q_norm" not in weights:
            return {}
        plain = {"rms": functools.partial(rms_norm, eps=1e-6)}.get(self.qk_norm, functools.partial(layer_norm, eps=1e-5))
        heads = zip(("q_norm", "k_norm"), call(self, weights, x, method="heads_of"), strict=False)
        return {f"{name}/scale": (plain(a), a.astype(jnp.float32) - weights[name].get("bias", 0.0)) for name, a in heads}

    @classmethod
    def check(cls, op: OpSpec, sizes: Sizes) -> None:
        check_attention(op)

    @classmethod
    def recognise(cls, shapes: Shapes, overrides: Overrides) -> dict[str, Option] | None:
        there = {name: f"{name}.bias" in shapes for name in ("qkv", "proj")}
        bias = next(name for name, has in BIASES.items() if has == tuple(there.values()))
        absent = {f"{name}.bias" for name, has in there.items() if not has}
        names = {key.name for key in cls.torch_keys} - absent  # those without norms are a damaged `mha`
        found = {"rms": names - {"ln_q.bias", "ln_k.bias"}, "layer_affine": names}
        norm = next((norm for norm, own in found.items() if own == set(shapes)), None)
        return {"qk_norm": norm, "bias": bias} if norm else None
