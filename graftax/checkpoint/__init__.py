"""Models in and out of files: PyTorch `.pt` without PyTorch, safetensors, graftax and diffusers folders.

Training state is in `manager`.
"""

from graftax.checkpoint.opening import export_diffusers, export_torch, open_checkpoint
from graftax.checkpoint.store import load_model, save_model

__all__ = ["export_diffusers", "export_torch", "load_model", "open_checkpoint", "save_model"]
