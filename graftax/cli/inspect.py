"""`graftax inspect`: show what a model is, how two models differ, or what grafts would cost.

One line for all blocks that are alike, with their parameters and FLOPs of one forward pass on one image; then the whole
model's, and where it comes from. With two models: the sizes, operators, leaves, parameters and FLOPs in which they differ.
A published name needs no file:

    graftax inspect DiT-XL/2 --cost
    graftax inspect DiT-XL/2 dit-xl2-mha-mamba_2-75p-fid3.02
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftax.cli import options

if TYPE_CHECKING:
    from graftax.models import Model
    from graftax.spec import ModelSpec

SIZES = {
    "input_size": "input size", "patch_size": "patch", "in_channels": "channels", "hidden_size": "width",
    "num_heads": "heads", "depth": "blocks", "num_classes": "classes", "learn_sigma": "learned variance",
    "compat": "numerics",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help='.pt, .safetensors, graftax folder, "demo", or a published name (graftax zoo)')
    parser.add_argument("other", nargs="?", help="a second model to compare with")
    parser.add_argument("--cost", action="store_true", help="print what the paper's grafts would change in this model")
    parser.add_argument("--params", action="store_true", help="print every parameter: shape, size, kept or new")
    parser.add_argument(
        "--mesh", metavar="AXES", help="print what every device holds in stage 2 on a mesh like fsdp=8 or data=2,fsdp=4"
    )
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Print the description, the difference or the costs."""
    from graftax.errors import BadInput

    overrides = options.overrides_of(args)
    for name in ("cost", "params", "mesh"):
        if getattr(args, name) and args.other is not None:
            raise BadInput(f"inspect --{name}: got two models, expected one")
    model = open_model(args.model, overrides)
    spec, meta = _parts(model)
    if args.cost or args.params or args.mesh:
        print("\n".join([
            *([parameters(model)] if args.params else []), *([costs(spec)] if args.cost else []),
            *([on_mesh(spec, args.mesh)] if args.mesh else []),
        ]))  # fmt: skip
    elif args.other is None:
        print(describe(spec, meta))
    else:
        print(f"{args.model} -> {args.other}\n{difference(model, open_model(args.other, overrides))}")


def open_model(name: str, overrides: dict[str, Any]) -> Model | ModelSpec:
    """The model in a file or folder; the spec alone for a published name."""
    from graftax.checkpoint.dit_keys import check_overrides
    from graftax.checkpoint.zoo import spec_of
    from graftax.cli.experiments.stages import read_model

    spec = None if Path(name).exists() else spec_of(name)
    if spec is None:
        return read_model(name, **overrides)
    shape = {name: value for name, value in overrides.items() if name != "compat"}
    check_overrides(spec, shape)
    return spec.replace(compat=overrides.get("compat", spec.compat))


def _parts(model: Model | ModelSpec) -> tuple[ModelSpec, dict[str, Any]]:
    from graftax.models import Model

    return (model.spec, model.meta.to_dict()) if isinstance(model, Model) else (model, {})


def describe(spec: ModelSpec, meta: dict[str, Any]) -> str:
    """The model in a few lines of text, without a line end."""
    from graftax.models.cost import count_params, count_trainable, flops
    from graftax.surgery.report import program_text

    size = f"{spec.input_size}x{spec.input_size}x{spec.in_channels}, patch {spec.patch_size}, {spec.tokens} tokens"
    lines = [
        f"{'backbone':<12}{spec.backbone}, {spec.depth} blocks, width {spec.hidden_size}, {spec.num_heads} heads",
        f"{'input':<12}{size}, {spec.num_classes} classes{', learned variance' if spec.learn_sigma else ''}",
        *_blocks(spec),
        f"{'program':<12}{program_text(spec.program)}",
        f"{'parameters':<12}{count_params(spec):,} ({count_trainable(spec):,} trainable)",
        f"{'FLOPs':<12}{flops(spec):,} per image and forward pass",
    ]
    if spec.compat != "dit":
        lines.insert(1, f"{'numerics':<12}those of {spec.compat}")
    if spec.adapters:
        ranks = ", ".join(map(str, sorted({adapter.rank for adapter in spec.adapters})))
        lines.append(f"{'adapters':<12}{len(spec.adapters)}, rank {ranks}")
    for name in ("source", "sha256", "edits", "sites"):
        if value := meta.get(name):
            lines.append(f"{name:<12}{', '.join(value) if isinstance(value, list) else value}")
    return "\n".join(lines)


def parameters(model: Model | ModelSpec) -> str:
    """Every parameter in a table, blocks that are alike in one line, without a line end."""
    from graftax.models import Model, param_shapes
    from graftax.surgery.select import select
    from graftax.train.overview import parameter_table

    if not isinstance(model, Model):
        return parameter_table(param_shapes(model))
    return parameter_table(model.params, select(model.meta.sites, model.spec) if model.meta.sites else ())


def _blocks(spec: ModelSpec) -> list[str]:
    """A table with a line for all blocks that are alike, and one for all that is not in blocks."""
    from graftax.models.cost import block_cost, count_params, flops
    from graftax.surgery.select import compact

    ids: dict[Any, list[int]] = {}
    for i, block in enumerate(spec.blocks):
        ids.setdefault(block, []).append(i)
    rows = [(compact(run), block_cost(spec, run), f"{block.mixer} + {block.mlp}") for block, run in ids.items()]
    params, operations = (sum(column) for column in zip(*(cost for _, cost, _ in rows), strict=True))
    rows.append(("the rest", (count_params(spec) - params, flops(spec) - operations), "everything outside the blocks"))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{'blocks':<{width}}  {'parameters':>13}  {'FLOPs':>17}  operators"]
    return lines + [f"{name:<{width}}  {cost[0]:13,}  {cost[1]:17,}  {text}" for name, cost, text in rows]


def difference(before: Model | ModelSpec, after: Model | ModelSpec) -> str:
    """How two models differ, without a line end: sizes first, then the report on operators, leaves and cost."""
    from graftax.surgery import diff

    specs = [_parts(model)[0] for model in (before, after)]
    sizes = [(label, *(getattr(spec, name) for spec in specs)) for name, label in SIZES.items()]
    lines = [f"{label:<20}{old} -> {new}" for label, old, new in sizes if old != new]
    return "\n".join([*lines, str(diff(before, after))])


def on_mesh(spec: ModelSpec, text: str) -> str:
    """What stage 2 keeps of the model on a mesh, in all and on each device, and large leaves that are not split, without a
    line end."""
    from graftax.train import MeshConfig
    from graftax.train.sharding_report import sharding_report, state_shapes

    config = MeshConfig.parse(text)
    config.check_heads(spec.num_heads)
    state, mesh = state_shapes(spec), config.abstract()
    parts = {"parameters": state.trainable, "averages": state.ema, "optimiser": state.opt_state, "together": state}
    lines = [f"{name:<12}{str(sharding_report(tree, mesh)).splitlines()[0]}" for name, tree in parts.items()]
    return "\n".join([f"stage 2 on the mesh {config}", *lines, *str(sharding_report(state, mesh)).splitlines()[1:]])


def costs(spec: ModelSpec) -> str:
    """The paper's cost table for this model, without a line end."""
    from graftax.evaluate.costs import MISPRINT, cost_table
    from graftax.models import variant

    rows = cost_table(spec)
    width = max(len(str(row.operator)) for row in rows)
    lines = [f"{'change in percent':<{width}}  blocks  operator  featurizers  parameters  model FLOPs"]
    for row in rows:
        featurizers = "-" if row.featurizer_flops is None else f"{row.featurizer_flops:+.2f}"
        numbers = f"{row.op_flops:+8.2f}  {featurizers:>11}  {row.params:+10.2f}  {row.model_flops:+11.2f}"
        lines.append(f"{row.operator!s:<{width}}  {row.percent:4} %  {numbers}")
    return "\n".join([*lines, *([MISPRINT] if spec == variant("DiT-XL/2") else [])])
