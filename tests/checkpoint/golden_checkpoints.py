"""Golden files, the reference's own view of them, and DiT's layout on bare tensors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from graftax.backbones.dit.layouts import DiTFile
from graftax.models.backbone import find
from graftax.models.layout import params_from, tensor_shapes
from graftax.spec import ModelSpec, Option

LAYOUT = DiTFile()
FOLDER = Path(__file__).parent.parent / "goldens"
NAMES = ("dit", "graft_mha_hyena_x_50p", "graft_mha_swa_50p", "graft_mlp_mlp_50p")


def golden(name: str) -> Path:
    return FOLDER / f"{name}.pt"


def spec_of(tensors: dict[str, Any], **overrides: Option) -> ModelSpec:
    """What the model in a file of these tensors is, after what the user adds."""
    spec = LAYOUT.spec({name: np.shape(array) for name, array in tensors.items()}, {}, overrides)
    return find(spec).override(spec, overrides)


def load(tensors: dict[str, Any], **overrides: Option) -> tuple[ModelSpec, dict[str, Any]]:
    """The model in a file of these tensors."""
    spec = spec_of(tensors, **overrides)
    return spec, params_from(LAYOUT, spec, tensors)


def hollow(spec: ModelSpec) -> dict[str, np.ndarray]:
    """Tensors of a file that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in tensor_shapes(LAYOUT, spec).items()}


def load_with_torch(path: Path) -> dict[str, Any]:
    """The state dict as PyTorch reads it, EMA where there is one."""
    import torch

    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, weights_only=True)
    return content.get("ema", content)
