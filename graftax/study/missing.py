"""What to say where a model is not there: which command makes it, or where it is published."""

from __future__ import annotations

from pathlib import Path

from graftax.backbones.dit.zoo import ZOO
from graftax.errors import BadInput

MAKERS = {"grafted": "graft", "distilled": "distill", "finetuned": "finetune", "model": "train", "best": "search"}
"""Folders that verbs leave in a work folder, and these verbs."""


def require_model(name: str | Path) -> None:
    """Raise `BadInput` where `name` is neither a file nor a folder nor "demo", saying how it comes about.

    What is in a bucket (gs://) is looked for when it is read.
    """
    path = Path(name)
    if str(name) == "demo" or ":/" in str(name) or path.exists():
        return
    if path.name in MAKERS:
        raise BadInput(f"model {str(name)!r}: no such folder; run `graftax {MAKERS[path.name]} --config ...` first")
    known = next((entry for entry in ZOO.values() if entry.name in (path.stem, path.name, path.parent.name)), None)
    where = f"; it is published at {known.url}" if known else ""
    raise BadInput(f"model {str(name)!r}: no such file or folder{where}")
