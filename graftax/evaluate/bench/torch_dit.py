"""The rival of `bench forward` and `bench train`: DiT in PyTorch, eager, built from a graftax parameter tree.

Attention is PyTorch's own `scaled_dot_product_attention`. Linear layers use the BLAS that PyTorch was built with (MKL, which
is slow on processors of other makers) or oneDNN, one model for both, since weights of DiT-XL/2 take 2.7 GB.
This is the only file of the package that needs torch; import it late.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftax.backbones.embedders import FREQUENCIES
from graftax.errors import BadInput
from graftax.ops.base import Params
from graftax.spec import ModelSpec, sequential
from graftax.train.optimiser import OptimiserConfig

KINDS = ["adaln", "layer_norm", "mha", "mlp"]
"""What blocks of a DiT as published hold."""


class Linear(nn.Module):
    """A linear layer from {"kernel" (in, out), "bias" (out,)}."""

    onednn = False

    def __init__(self, p: Params) -> None:
        super().__init__()
        self.weight = nn.Parameter(_tensor(p["kernel"]).T.contiguous(), requires_grad=False)  # (out, in)
        self.bias = nn.Parameter(_tensor(p["bias"]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.onednn:
            return F.linear(x, self.weight, self.bias)
        if not torch.is_grad_enabled():
            return _product(x, self.weight, self.bias)
        return _OneDNN.apply(x, self.weight, self.bias)  # pyright: ignore[reportReturnType]


class _OneDNN(torch.autograd.Function):
    """A linear layer whose three products are oneDNN's; the operator itself has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows, inputs = grads[0].flatten(0, -2), x.flatten(0, -2)
        return _product(grads[0], weight.T), _product(rows.T.contiguous(), inputs.T), rows.sum(0)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight.contiguous(), bias, "none", [], "")


class Block(nn.Module):
    """One adaLN-zero block."""

    def __init__(self, p: Params, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.adaln = Linear(p["adaln"])
        self.qkv, self.proj = (Linear(p["mixer"][name]) for name in ("qkv", "proj"))
        self.fc1, self.fc2 = (Linear(p["mlp"][name]) for name in ("fc1", "fc2"))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaln(F.silu(c))[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(_modulated(x, shift1, scale1))
        hidden = F.gelu(self.fc1(_modulated(x, shift2, scale2)), approximate="tanh")
        return x + gate2 * self.fc2(hidden)

    def attention(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (b, h, n, k) each
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, n, d))


class TorchDiT(nn.Module):
    """x (b, c, h, w), t (b,), y (b,) -> (b, out channels, h, w), as DiT is published; holds a copy of `params`.

    Raises `BadInput` unless all blocks are DiT's, run in order.
    """

    def __init__(self, spec: ModelSpec, params: Params) -> None:
        kinds = sorted({op.kind for block in spec.blocks for _, op in block.ops})
        if kinds != KINDS or spec.program != sequential(spec.depth):
            raise BadInput(f"PyTorch rival: operators {kinds}, expected {KINDS} alone, blocks in order")
        super().__init__()
        self.spec = spec
        flat = {"kernel": params["x_embedder"]["kernel"].reshape(-1, spec.width), "bias": params["x_embedder"]["bias"]}
        self.patch = Linear(flat)
        self.positions = nn.Parameter(_tensor(params["pos_embed"]), requires_grad=False)
        self.labels = nn.Parameter(_tensor(params["y_embedder"]["embedding"]), requires_grad=False)
        self.time1, self.time2 = (Linear(params["t_embedder"][name]) for name in ("fc1", "fc2"))
        blocks = (params["blocks"][spec.block_key(i)] for i in range(spec.depth))
        self.blocks = nn.ModuleList(Block(p, spec.sizes.heads) for p in blocks)
        self.adaln, self.linear = (Linear(params["final"][name]) for name in ("adaln", "linear"))

    def use_onednn(self, on: bool) -> TorchDiT:
        """Choose the library of all linear layers; returns the model itself."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.onednn = on
        return self

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        (rows, columns), p = self.spec.sizes.grid, self.spec.option("patch")
        b = x.shape[0]
        x = x.reshape(b, -1, rows, p, columns, p).permute(0, 2, 4, 3, 5, 1).reshape(b, rows * columns, -1)  # (b, n, p p c)
        x = self.patch(x) + self.positions
        c = self.time2(F.silu(self.time1(_features(t)))) + self.labels[y]
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.adaln(F.silu(c))[:, None].chunk(2, dim=-1)
        x = self.linear(_modulated(x, shift, scale)).reshape(b, rows, columns, p, p, -1)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, rows * p, columns * p)


class TorchTraining:
    """Training of a `TorchDiT` by the mean squared error of the predicted noise; each call is one update on one batch:
    gradients, AdamW (fused), averages. Keeps the loss of the last one.

    `batch`: image and noise (b, h, w, c), t (b,), label (b,). `onednn` chooses the library of the linear layers.
    """

    def __init__(
        self, spec: ModelSpec, params: Params, batch: Mapping[str, np.ndarray], optimiser: OptimiserConfig,
        ema_decay: float, onednn: bool,
    ) -> None:  # fmt: skip
        self.model = TorchDiT(spec, params).use_onednn(onednn)
        self.trained = [p for p in self.model.parameters() if p is not self.model.positions]
        for parameter in self.trained:
            parameter.requires_grad_(True)
        self.averages, self.decay = [p.detach().clone() for p in self.trained], ema_decay
        betas = optimiser.b1, optimiser.b2
        self.adamw = torch.optim.AdamW(
            self.trained, optimiser.learning_rate, betas, optimiser.eps, optimiser.weight_decay, fused=True
        )
        images = {name: torch.from_numpy(batch[name].transpose(0, 3, 1, 2).copy()) for name in ("image", "noise")}
        self.inputs = images["image"], torch.from_numpy(batch["t"].copy()), torch.from_numpy(batch["label"].astype(np.int64))
        self.noise, self.loss = images["noise"], 0.0

    def __call__(self) -> None:
        self.adamw.zero_grad(set_to_none=True)
        out = self.model(*self.inputs)[:, : self.noise.shape[1]]
        loss = F.mse_loss(out, self.noise)
        loss.backward()
        self.adamw.step()
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.trained], 1 - self.decay)  # pyright: ignore
        self.loss = float(loss.detach())


def _tensor(a: jax.Array | np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(a, np.float32))


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _features(t: Tensor) -> Tensor:
    half = FREQUENCIES // 2
    angles = t.float()[:, None] * 10000 ** (-torch.arange(half, dtype=torch.float32) / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
