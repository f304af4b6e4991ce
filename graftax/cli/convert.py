"""`graftax convert`: turn a model file into another format: .pt, .safetensors, a graftax folder or a diffusers folder.

    graftax convert DiT-XL-2-256x256.pt teacher
    graftax convert teacher dit-xl-2 --diffusers --compat diffusers
    graftax convert adapted lora.safetensors --adapters

The input's format is recognised; the output's follows its name: .pt and .safetensors are PyTorch's DiT layout, a name
without suffix is a graftax checkpoint folder, or with --diffusers one that DiTTransformer2DModel.from_pretrained reads.
Nothing in the input is executed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from graftax.cli import options

FILES = (".pt", ".pth", ".safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("input", metavar="IN", help=".pt, .safetensors, graftax or diffusers folder")
    parser.add_argument("output", metavar="OUT", help="name.pt, name.safetensors, or a folder")
    parser.add_argument("--diffusers", action="store_true", help="OUT is a folder in Hugging Face diffusers' layout")
    parser.add_argument("--merge-lora", action="store_true", help="fold the model's adapters into its kernels")
    parser.add_argument("--adapters", action="store_true", help="OUT.safetensors holds the model's adapters, a LoRA file")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of a graftax folder's weights"
    )
    options.add_overwrite(parser, "OUT")
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Open, check, write."""
    from graftax import api
    from graftax.checkpoint import export_model, save_model
    from graftax.errors import BadInput
    from graftax.models.cost import count_params
    from graftax.study.missing import require_model
    from graftax.surgery import graft, merge_lora

    to_file = Path(args.output).suffix in FILES
    output = (options.own_output if to_file else options.own_model_output)(args.output, args.overwrite)
    if args.adapters and (not to_file or args.merge_lora):
        raise BadInput(f"{output}: --adapters writes name.safetensors, of a model whose adapters are not merged")
    if to_file and args.diffusers:
        raise BadInput(f"{output}: --diffusers writes a folder, expected a name without {output.suffix}")
    if (to_file or args.diffusers) and args.dtype != "float32":
        raise BadInput(f"dtype {args.dtype} for {output}: expected float32, PyTorch layouts are written in full")
    require_model(args.input)
    model = api.read(args.input, **options.overrides_of(args))
    if args.merge_lora:
        model = graft(model, merge_lora())
    if args.adapters:
        api.export_lora(model, output)
    elif to_file or args.diffusers:
        export_model(output, model.spec, model.params, meta=model.meta.to_dict())
    else:
        save_model(output, model.spec, model.params, model.meta.to_dict(), dtype=args.dtype)
    spec = model.spec
    print(f"{output}: {spec.backbone}, {spec.depth} blocks, {count_params(spec):,} parameters, from {args.input}")
