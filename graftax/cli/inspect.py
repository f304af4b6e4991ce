"""`graftax inspect`: show what a model is, or how two models differ.

One line per run of equal blocks; parameters, FLOPs of one forward pass on one image, where the model comes from. With two
models: the operators, leaves, parameters and FLOPs in which they differ.
"""

from __future__ import annotations

import argparse
import itertools
from typing import TYPE_CHECKING, Any

from graftax.cli import options

if TYPE_CHECKING:
    from graftax.spec import ModelSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help='.pt, .safetensors, graftax folder, or "demo"')
    parser.add_argument("other", nargs="?", help="a second model to compare with")
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    """Print the description or the difference."""
    from graftax.cli.stages import read_model
    from graftax.surgery import diff

    model = read_model(args.model, **options.overrides_of(args))
    if args.other is None:
        print(describe(model.spec, model.meta.to_dict()))
    else:
        print(f"{args.model} -> {args.other}\n{diff(model, read_model(args.other, **options.overrides_of(args)))}")


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
    for name in ("source", "sha256", "edits", "sites"):
        if value := meta.get(name):
            lines.append(f"{name:<12}{', '.join(value) if isinstance(value, list) else value}")
    return "\n".join(lines)


def _blocks(spec: ModelSpec) -> list[str]:
    lines, start = [], 0
    for block, run in itertools.groupby(spec.blocks):
        stop = start + len(list(run))
        name = f"block {start}" if stop == start + 1 else f"{start}..{stop - 1}"
        lines.append(f"{name:<12}{block.mixer} + {block.mlp}")
        start = stop
    return lines
