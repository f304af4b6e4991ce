"""What to say where a model is not there: which command makes it, or where it is published."""

from __future__ import annotations

from pathlib import Path

from graftax.checkpoint.opening import require_there
from graftax.checkpoint.shipped import is_shipped, shipped_path
from graftax.errors import BadInput

MAKERS = {"grafted": "graft", "distilled": "distill", "finetuned": "finetune", "model": "train", "best": "search"}
"""Folders that verbs leave in a work folder, and these verbs."""


def require_model(name: str | Path) -> None:
    """Raise `BadInput` where `name` is neither a file nor a folder nor shipped, saying how it comes about."""
    path = Path(name)
    if is_shipped(name):
        shipped_path(name)
        return
    if path.name in MAKERS and ":/" not in str(name) and not path.exists():
        raise BadInput(f"model {str(name)!r}: no such folder; run `graftax {MAKERS[path.name]} --config ...` first")
    require_there(name)
