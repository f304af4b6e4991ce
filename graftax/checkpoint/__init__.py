"""Models in and out of files: PyTorch `.pt` without PyTorch, safetensors, graftax folders, those of Hugging Face's
libraries.

Training state is in `manager`.
"""

from graftax.checkpoint.opening import export_model, layouts, open_checkpoint, read_beside
from graftax.checkpoint.placing import LARGE, place_params
from graftax.checkpoint.store import save_model

__all__ = ["LARGE", "export_model", "layouts", "open_checkpoint", "place_params", "read_beside", "save_model"]
