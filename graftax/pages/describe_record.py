"""What `describe` says, as JSON types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from graftax.evaluate.costs import cost_table
from graftax.models import Model, param_shapes
from graftax.models.cost import block_cost, count_params, count_trainable, flops
from graftax.pages.describe import Described, scions_of, spec_and_meta
from graftax.spec import ModelSpec, members
from graftax.surgery import diff
from graftax.surgery.select import compact
from graftax.train import MeshConfig
from graftax.train.overview import parameter_rows
from graftax.train.sharding_report import sharding_report, state_shapes


def describe(model: Described) -> dict[str, Any]:
    """What a model is, what it costs and where it comes from."""
    spec, meta = spec_and_meta(model)
    blocks = [
        {"blocks": compact(run), **dict(zip(("parameters", "flops"), block_cost(spec, run), strict=True)),
         "operators": {slot: str(op) for slot, op in block.ops}}
        for block, run in members(spec.blocks).items()
    ]  # fmt: skip
    sizes = {"parameters": count_params(spec), "trainable": count_trainable(spec), "flops": flops(spec)}
    return {**sizes, "blocks": blocks, "meta": meta, "spec": json.loads(spec.to_json())}


def parts(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `parts_of` found, JSON types."""
    return {name: asdict(sizes) for name, sizes in found.items()}


def difference(before: Described, after: Described) -> dict[str, Any]:
    """How two models differ: both, and what became of the first one's leaves."""
    report = diff(before, after)
    leaves = {"kept": report.kept, "new": report.new, "dropped": report.dropped}
    return {"before": describe(before), "after": describe(after), "sites": list(map(str, report.sites)), "leaves": leaves}


def parameters(model: Described) -> list[dict[str, Any]]:
    """Every parameter, blocks that are alike together."""
    found = isinstance(model, Model)
    rows = parameter_rows(model.params, scions_of(model)) if found else parameter_rows(param_shapes(model))
    return [asdict(row) for row in rows]


def costs(spec: ModelSpec) -> list[dict[str, Any]]:
    """The paper's cost table for this model."""
    return [{**asdict(row), "operator": str(row.operator)} for row in cost_table(spec)]


def on_mesh(spec: ModelSpec, text: str) -> dict[str, Any]:
    """Bytes of what stage 2 keeps of the model on a mesh."""
    config = MeshConfig.parse(text)
    config.check_heads(spec.sizes.heads)
    return asdict(sharding_report(state_shapes(spec), config.abstract()))
