"""Specs as version 1 of their format wrote them: DiTs of square images alone, a mixer and an MLP in every block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELDS = (
    "adapters", "backbone", "blocks", "compat", "hidden_size", "in_channels", "input_size", "learn_sigma", "num_classes",
    "num_heads", "patch_size", "program",
)  # fmt: skip


def upgraded(old: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of version 2 from those of version 1, as JSON has both. Raises KeyError or TypeError where they are no such."""
    if unknown := sorted(old.keys() - set(FIELDS)):
        raise KeyError(unknown[0])
    side, width, heads = old["input_size"] // old["patch_size"], old["hidden_size"], old["num_heads"]
    compat = old.get("compat", "dit")
    frame = {"patch": old["patch_size"], "channels": old["in_channels"], "classes": old["num_classes"], "compat": compat}
    # What version 1 did not say: the modulation, and norms whose eps hung on `compat`.
    norms = {"norm1": 1e-6, "norm2": 1e-5 if compat == "diffusers" else 1e-6}
    made = {slot: {"kind": "layer_norm", "options": [["affine", False], ["eps", eps]]} for slot, eps in norms.items()}
    adaln = {"kind": "adaln", "options": []}
    blocks = [
        [("adaln", adaln), ("norm1", made["norm1"]), ("mixer", b["mixer"]), ("norm2", made["norm2"]), ("mlp", b["mlp"])]
        for b in old["blocks"]
    ]
    return {
        "version": 2, "backbone": old.get("backbone", "dit"),
        "sizes": {"width": width, "heads": heads, "head_dim": width // heads, "grid": (side, side)},
        "frame": list(frame.items()), "prediction": {"variance": old.get("learn_sigma", True)},
        "blocks": [{"kind": "dit", "ops": held} for held in blocks],
        "program": old.get("program", ()), "adapters": old.get("adapters", ()),
    }  # fmt: skip
