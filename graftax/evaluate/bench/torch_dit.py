"""The rival of `bench forward`: DiT in PyTorch, eager, built from a graftax parameter tree.

Attention is PyTorch's own `scaled_dot_product_attention`. Linear layers use the BLAS that PyTorch was built with (MKL, which
is slow on processors of other makers) or oneDNN, one model for both, since weights of DiT-XL/2 take 2.7 GB.
This is the only file of the package that needs torch; import it late.
"""

from __future__ import annotations

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftax.backbones.dit.frame import FREQUENCIES
from graftax.errors import BadInput
from graftax.ops.base import Params
from graftax.spec import ModelSpec, sequential

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
        if self.onednn:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


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


def _tensor(a: jax.Array | np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(a, np.float32))


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _features(t: Tensor) -> Tensor:
    half = FREQUENCIES // 2
    angles = t.float()[:, None] * 10000 ** (-torch.arange(half, dtype=torch.float32) / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
