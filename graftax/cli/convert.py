"""`graftax convert`: turn a model file into another format: .pt, .safetensors, a graftax folder or a diffusers folder.

    graftax convert DiT-XL-2-256x256.pt teacher
    graftax convert teacher dit-xl-2 --diffusers --compat diffusers

The input's format is recognised; the output's follows its name: .pt and .safetensors are PyTorch's DiT layout, anything
else is a graftax checkpoint folder, or with --diffusers one that DiTTransformer2DModel.from_pretrained reads. Nothing in
the input is executed.
"""

from __future__ import annotations

import argparse

from graftax.cli import options

FILES = (".pt", ".pth", ".safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("input", metavar="IN", help=".pt, .safetensors, graftax or diffusers folder")
    parser.add_argument("output", metavar="OUT", help="name.pt, name.safetensors, or a folder")
    parser.add_argument("--diffusers", action="store_true", help="OUT is a folder in Hugging Face diffusers' layout")
    parser.add_argument("--merge-lora", action="store_true", help="fold the model's adapters into its kernels")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of a graftax folder's weights"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Open, check, write."""
    from graftax import api
    from graftax.checkpoint import export_model, save_model
    from graftax.errors import BadInput
    from graftax.models.cost import count_params
    from graftax.surgery import graft, merge_lora

    output = options.refuse_existing(args.output, args.overwrite)
    to_file = output.suffix in FILES
    if to_file and args.diffusers:
        raise BadInput(f"{output}: --diffusers writes a folder, expected a name without {output.suffix}")
    if (to_file or args.diffusers) and args.dtype != "float32":
        raise BadInput(f"dtype {args.dtype} for {output}: expected float32, PyTorch layouts are written in full")
    model = api.read(args.input, **options.overrides_of(args))
    if args.merge_lora:
        model = graft(model, merge_lora())
    if to_file or args.diffusers:
        export_model(output, model.spec, model.params)
    else:
        save_model(output, model.spec, model.params, model.meta.to_dict(), dtype=args.dtype)
    spec = model.spec
    print(f"{output}: {spec.backbone}, {spec.depth} blocks, {count_params(spec):,} parameters, from {args.input}")
