"""`graftax convert`: turn a model file into another format: .pt, .safetensors, a graftax folder or a diffusers folder.

    graftax convert DiT-XL-2-256x256.pt teacher
    graftax convert teacher dit-xl-2 --diffusers --compat diffusers

The input's format is recognised; the output's follows its name: .pt and .safetensors are PyTorch's DiT layout, anything
else is a graftax checkpoint folder, or with --diffusers one that DiTTransformer2DModel.from_pretrained reads. Nothing in
the input is executed.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from graftax.cli import options

if TYPE_CHECKING:
    from graftax.spec import ModelSpec

FILES = (".pt", ".pth", ".safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("input", metavar="IN", help=".pt, .safetensors, graftax or diffusers folder")
    parser.add_argument("output", metavar="OUT", help="name.pt, name.safetensors, or a folder")
    parser.add_argument("--diffusers", action="store_true", help="OUT is a folder in Hugging Face diffusers' layout")
    parser.add_argument("--merge-lora", action="store_true", help="fold the model's adapters into its kernels")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of a graftax folder's weights")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Open, check, write."""
    from graftax.checkpoint import export_diffusers, export_torch, open_checkpoint, save_model
    from graftax.errors import BadInput
    from graftax.models.cost import count_params
    from graftax.surgery import check

    output = options.refuse_existing(args.output, args.overwrite)
    to_file = output.suffix in FILES
    if to_file and args.diffusers:
        raise BadInput(f"{output}: --diffusers writes a folder, expected a name without {output.suffix}")
    if (to_file or args.diffusers) and args.dtype != "float32":
        raise BadInput(f"dtype {args.dtype} for {output}: expected float32, PyTorch layouts are written in full")
    spec, params, meta = open_checkpoint(args.input, **options.overrides_of(args))
    check(spec, params)
    if args.merge_lora:
        spec, params, meta = _merged(spec, params, meta)
    if to_file:
        export_torch(output, spec, params)
    elif args.diffusers:
        export_diffusers(output, spec, params)
    else:
        save_model(output, spec, params, meta, dtype=args.dtype)
    print(f"{output}: {spec.backbone}, {spec.depth} blocks, {count_params(spec):,} parameters, from {args.input}")


def _merged(
    spec: ModelSpec, params: dict[str, Any], meta: dict[str, Any]
) -> tuple[ModelSpec, dict[str, Any], dict[str, Any]]:
    import jax

    from graftax.surgery import merge_lora

    edit = merge_lora()
    spec, params, _ = edit(spec, params, jax.random.key(0))
    return spec, params, {**meta, "edits": [*meta.get("edits", ()), edit.text]}
