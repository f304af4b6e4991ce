"""The list of published models, and one of them, as plain text and as JSON; it is read without JAX."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from graftax.backbones.published import Published, Scores


def listing(models: Iterable[Published]) -> str:
    """Published models, one line each, without a line end."""
    models = list(models)
    width = max(len(model.name) for model in models)
    lines = [f"{'name':<{width}}   FID      parameters    GFLOPs  edit"]
    for model in models:
        fid = f"{model.scores.fid:5.2f}" if model.scores else f"{'-':>5}"
        numbers = f"{fid}  {model.params:14,}  {model.flops / 1e9:8.2f}"
        lines.append(f"{model.name:<{width}} {numbers}  {model.edit}".rstrip())
    return "\n".join(lines)


def entry(model: Published) -> str:
    """One published model in a few lines, without a line end."""
    file = model.url.rsplit("/", 1)[1].partition("?")[0]
    layout = getattr(model, "layout", "")  # where tensors cannot tell
    how, flag = (f', layout="{layout}"', f" --layout {layout}") if layout else ("", "")
    fields = {
        "name": model.name,
        "edit": f"{model.edit} on DiT-XL-2-256x256" if model.edit else "none",
        "blocks": _blocks(model),
        "parameters": f"{model.params:,}",
        "FLOPs": f"{model.flops:,} per image and forward pass",
        "published": _scores(model.scores) if model.scores else "",
        "note": model.note,
        "page": model.page,
        "weights": model.url,
        "licence": model.licence,
        "load": f'graftax.load("{file}"{how}), graftax inspect {file}{flag}, graftax convert {file} FOLDER{flag}',
    }
    return "\n".join(f"{name:<12}{value}" for name, value in fields.items() if value)


def _scores(scores: Scores) -> str:
    parts = {
        "FID": scores.fid, "Inception score": scores.inception_score, "sFID": scores.sfid, "precision": scores.precision,
        "recall": scores.recall,
    }  # fmt: skip
    return ", ".join(f"{name} {value:.2f}" for name, value in parts.items() if value is not None)


def _blocks(model: Published) -> str:
    shares = {14: "every second", 21: "all but every fourth", 28: "all"}
    return f"{shares[len(model.blocks)]} ({len(model.blocks)})" if model.blocks else "none"


def record(model: Published) -> dict[str, Any]:
    """One published model as JSON types."""
    return {
        "name": model.name, "edit": model.edit, "blocks": model.blocks, "parameters": model.params, "flops": model.flops,
        "scores": asdict(model.scores) if model.scores else None, "note": model.note, "page": model.page, "url": model.url,
        "licence": model.licence,
    }  # fmt: skip
