"""`graftax convert`: turn a model file into another format: .pt, .safetensors or a graftax folder.

The input's format is recognised; the output's follows its name: .pt and .safetensors are PyTorch's DiT layout, anything
else is a graftax checkpoint folder. Nothing in the input is executed.
"""

from __future__ import annotations

import argparse

from graftax.cli import options

FILES = (".pt", ".pth", ".safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("input", metavar="IN", help=".pt, .safetensors or graftax folder")
    parser.add_argument("output", metavar="OUT", help="name.pt, name.safetensors, or a folder")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of a graftax folder's weights")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Open, check, write."""
    from graftax.checkpoint import export_torch, open_checkpoint, save_model
    from graftax.errors import BadInput
    from graftax.models.cost import count_params
    from graftax.surgery import check

    output = options.refuse_existing(args.output, args.overwrite)
    to_file = output.suffix in FILES
    if to_file and args.dtype != "float32":
        raise BadInput(f"dtype {args.dtype} for {output}: expected float32, the PyTorch layout is written in full")
    spec, params, meta = open_checkpoint(args.input, **options.overrides_of(args))
    check(spec, params)
    if to_file:
        export_torch(output, spec, params)
    else:
        save_model(output, spec, params, meta, dtype=args.dtype)
    print(f"{output}: {spec.backbone}, {spec.depth} blocks, {count_params(spec):,} parameters, from {args.input}")
