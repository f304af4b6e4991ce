"""What graftax brings: two models and the small networks beside them, by the names that stand for paths."""

from __future__ import annotations

from pathlib import Path

from graftax.checkpoint.files import demo_path
from graftax.errors import BadInput

MODEL = "model"
"""What a diffusion transformer is called among the kinds of what is shipped."""

SHIPPED = {
    (MODEL, "demo"): ("dit", "demo_dit"),
    ("autoencoder", "demo"): ("autoencoder.safetensors", "demo_autoencoder"),
    ("classifier", "demo"): ("classifier.safetensors", "demo_classifier"),
    (MODEL, "scenes"): ("scenes", "scenes"),
    ("autoencoder", "scenes"): ("scenes_autoencoder.safetensors", "scenes_autoencoder"),
}
"""By kind and name: where it is among the demo's files, and the config that makes it."""

NAMES = tuple(dict.fromkeys(name for _, name in SHIPPED))
"""Which therefore are no names for outputs."""


def is_shipped(name: str | Path, kind: str = MODEL) -> bool:
    """Whether `name` stands for something of this kind that graftax brings."""
    return (kind, str(name)) in SHIPPED


def is_there(name: str, kind: str = MODEL) -> bool:
    """Whether what `name` stands for has been made and is among graftax's files."""
    return demo_path(SHIPPED[kind, name][0]).exists()


def shipped_path(name: str | Path, kind: str = MODEL) -> Path:
    """Where a shipped model or network is. Raises `BadInput` where it is not there, saying what makes it."""
    file, config = SHIPPED[kind, str(name)]
    if not is_there(str(name), kind):
        raise BadInput(f"{kind} {str(name)!r}: not shipped yet: train it with `graftax train --config configs/{config}.py`")
    return demo_path(file)
