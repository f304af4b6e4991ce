"""Models in and out of files: PyTorch `.pt` without PyTorch, safetensors, graftax folders; training state in `manager`."""

from graftax.checkpoint.opening import export_torch, open_checkpoint
from graftax.checkpoint.store import load_model, save_model

__all__ = ["export_torch", "load_model", "open_checkpoint", "save_model"]
