"""Golden files and the reference's own view of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "goldens"
NAMES = ("dit", "graft_mha_hyena_x_50p", "graft_mha_swa_50p", "graft_mlp_mlp_50p")


def golden(name: str) -> Path:
    return FOLDER / f"{name}.pt"


def load_with_torch(path: Path) -> dict[str, Any]:
    """The state dict as PyTorch reads it, EMA where there is one."""
    import torch

    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, weights_only=True)
    return content.get("ema", content)
