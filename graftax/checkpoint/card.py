"""The model card: a README beside every model that is written, which says to people what the files say to programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftax.models.backbone import published
from graftax.models.cost import count_params, flops
from graftax.spec import ModelSpec, members

NAME = "README.md"


def card_path(path: Path) -> Path:
    """Where the card of what is written to `path` goes: into a folder, beside a file under the file's name."""
    return path.with_name(f"{path.name}.md") if path.suffix else path / NAME


def card(name: str, spec: ModelSpec, meta: Mapping[str, Any]) -> str:
    """The card of a model, Markdown: what it is, how it came about, what it learnt from, how it scored, whose it is.

    `meta`: as in `graftax.models.Meta`.
    """
    source = str(meta.get("source") or "")
    title = name.removesuffix(f".{NAME}")
    return "\n".join(
        [
            "---", "library_name: graftax", f"tags: [{spec.backbone}, diffusion, graftax]", "---", "",
            f"# {title}", "", *_facts(spec), "",
            "## Recipe", "", *_list([*([f"start: {source}"] if source else []), *meta.get("edits", ())]), "",
            f"`graftax replay {title} OTHER --out NEW` does the same edits to another model.", "",
            "## Data", "", *_list(meta.get("data", ())), "",
            "## Scores", "", *_list(meta.get("scores", ())), "",
            "## Licence", "", _licence(source), "",
        ]
    )  # fmt: skip


def _facts(spec: ModelSpec) -> list[str]:
    rows, columns = spec.sizes.grid
    sizes = f"{spec.depth} blocks of width {spec.width}, {spec.sizes.heads} heads, {rows} x {columns} tokens"
    shape = " x ".join(map(str, spec.image_shape))
    held = members((slot, str(op)) for block in spec.blocks for slot, op in block.ops)
    operators = [f"- {slot}: {op}, in {len(where)} of {spec.depth} blocks" for (slot, op), where in held.items()]
    work = f"{count_params(spec):,} parameters, {flops(spec) / 1e9:.4g} GFLOPs for one pass on one image"
    return [f"A {spec.backbone} for images (or latents) of {shape}: {sizes}; {work}.", "", *operators]


def _list(lines: Any) -> list[str]:
    return [f"- {line}" for line in lines] or ["Nothing is recorded."]


def _licence(source: str) -> str:
    if known := published(source):
        return known.licence
    return "That of the weights that it was made from and of the data that it learnt from; graftax adds none."
