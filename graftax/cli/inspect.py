"""`graftax inspect`: show what a model is, how two models differ, or what grafts would cost.

One line for all blocks that are alike, with their parameters and FLOPs of one forward pass on one image; then the whole
model's, and where it comes from; of a pipeline also its text encoder and its VAE. With two models: the sizes, operators,
leaves, parameters and FLOPs in which they differ.
A published name needs no file:

    graftax inspect DiT-XL/2 --cost
    graftax inspect DiT-XL/2 dit-xl2-mha-mamba_2-75p-fid3.02
"""

from __future__ import annotations

import argparse

from graftax.cli import options
from graftax.errors import BadInput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help='.pt, .safetensors, folder, hf://ORG/NAME, "demo", or a published name (graftax zoo)')
    parser.add_argument("other", nargs="?", help="a second model to compare with")
    parser.add_argument("--cost", action="store_true", help="print what the paper's grafts would change in this model")
    parser.add_argument("--params", action="store_true", help="print every parameter: shape, size, kept or new")
    parser.add_argument(
        "--mesh", metavar="AXES", help="print what every device holds in stage 2 on a mesh like fsdp=8 or data=2,fsdp=4"
    )
    options.add_json(parser)
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Print the description, the difference or the costs."""
    from graftax.pages import describe as text
    from graftax.pages import describe_record as json

    overrides = options.overrides_of(args)
    for name in ("cost", "params", "mesh"):
        if getattr(args, name) and args.other is not None:
            raise BadInput(f"inspect --{name}: got two models, expected one")
    model = text.open_described(args.model, overrides)
    if args.other is not None:
        other = text.open_described(args.other, overrides)
        difference = f"{args.model} -> {args.other}\n{text.difference(model, other)}"
        options.answer(args, json.difference(model, other), difference)
        return
    spec, meta = text.spec_and_meta(model)
    found = {
        **({"params": (json.parameters(model), text.parameters(model))} if args.params else {}),
        **({"cost": (json.costs(spec), text.costs(spec))} if args.cost else {}),
        **({"mesh": (json.on_mesh(spec, args.mesh), text.on_mesh(spec, args.mesh))} if args.mesh else {}),
    }
    if found:
        record = {name: record for name, (record, _) in found.items()}
        options.answer(args, record, "\n".join(lines for _, lines in found.values()))
    else:
        parts = text.parts_of(args.model)
        record = {**json.describe(model), **({"parts": json.parts(parts)} if parts else {})}
        options.answer(args, record, "\n".join([text.describe(spec, meta), *text.describe_parts(parts)]))
