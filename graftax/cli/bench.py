"""`graftax bench`: measure this installation; `graftax bench list` names what there is.

    graftax bench forward variant=DiT-S/2 rounds=3
    graftax bench operators tokens=256,1024,4096 --out runs/operators
    graftax bench --aot v5e:2x4 --config configs/grafting.py:hyena_x,50
    graftax bench --aot v5e:2x4 --config configs/drawing.py:flux-schnell,8
    graftax bench --aot v5e:2x4 --config configs/grafting.py:hyena_x,50 --keep compiled

Settings are the keyword arguments of the functions in graftax.evaluate.bench.

--aot compiles the steps of a config for a TPU slice (v4:2x2x2, v5e:16x16, v5p:2x2x2, v6e:4x4) that need not be there, at
true size and without weights: memory of a chip, what chips send each other, whether it fits, and the time at 40 % of peak
from the model's FLOPs. Computed, not measured. It takes minutes, and pip install graftax[tpu]. --keep leaves the programs in
a folder: copied to the slice, or to gs://.., and named there by JAX_COMPILATION_CACHE_DIR, it spares the same config's run
their compilation, under the same versions of jax and libtpu.
"""

from __future__ import annotations

import argparse

from graftax.cli import options
from graftax.errors import BadInput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("name", nargs="?", help="which measurement, or list")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings other than the default")
    options.add_json(parser)
    parser.add_argument("--out", metavar="FOLDER", help="with operators: also a page with curves, there")
    options.add_overwrite(parser)
    parser.add_argument("--aot", metavar="SLICE", help="compile the steps of --config for this slice")
    parser.add_argument("--step", action="append", default=[], metavar="STEP", help="with --aot: this step, not all")
    parser.add_argument("--config", metavar="FILE", help="with --aot: the experiment, FILE or FILE:ARGUMENT")
    parser.add_argument("--keep", metavar="FOLDER", help="with --aot: leave the compiled programs there, for the slice")


def run(args: argparse.Namespace) -> None:
    """Measure and print a table."""
    if args.aot is not None:
        if args.name or not args.config:
            raise BadInput("bench --aot: expected --config FILE and no name of a measurement")
        _run_aot(args)
    elif args.config or args.overrides or args.step or args.keep is not None:
        raise BadInput("bench: got --config, --step or --keep, which belong to --aot SLICE")
    elif args.name is None:
        raise BadInput("bench: expected the name of a measurement, list, or --aot SLICE")
    else:
        _run_named(args)


def _run_aot(args: argparse.Namespace) -> None:
    from graftax.evaluate.aot import format_report
    from graftax.study import aot

    keep = options.output(args.keep, overwrite=True, holds=".") if args.keep is not None else None  # others may be in it
    rows = aot.compile_steps(args.aot, args.config, args.overrides, args.step, keep)
    options.answer(args, rows, format_report(rows) + (f"\n{aot.kept(keep)}" if keep else ""))


def _run_named(args: argparse.Namespace) -> None:
    from graftax.pages import bench_page
    from graftax.study import benches

    if args.name == "list":
        options.answer(args, *benches.listed())
        return
    measure = benches.named(args.name, args.settings)
    if args.out and args.name != "operators":
        raise BadInput(f"bench {args.name} --out: expected operators, which alone draws curves")
    folder = options.own_output(args.out, args.overwrite, bench_page.FILE) if args.out else None
    rows = measure()
    page = [str(bench_page.write(rows, folder))] if folder else []
    options.answer(args, rows, "\n\n".join([bench_page.text(args.name, rows), *page]))
