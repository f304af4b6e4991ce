"""`graftax bench`: measure this installation; `graftax bench list` names what there is.

    graftax bench forward variant=DiT-S/2 rounds=3
    graftax bench --aot v5e:2x4 --config configs/grafting.py:hyena_x,50

Settings are the keyword arguments of the functions in graftax.evaluate.bench.

--aot compiles the steps of a config for a TPU slice (v4:2x2x2, v5e:16x16, v5p:2x2x2, v6e:4x4) that need not be there, at
true size and without weights: memory of a chip, what chips send each other, whether it fits, and the time at 40 % of peak
from the model's FLOPs. Computed, not measured. It takes minutes, and pip install graftax[tpu].
"""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("name", nargs="?", help="which measurement, or list")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings other than the default")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--aot", metavar="SLICE", help="compile the steps of --config for this slice")
    parser.add_argument("--step", action="append", default=[], metavar="STEP", help="with --aot: this step, not all")
    parser.add_argument("--config", metavar="FILE", help="with --aot: the experiment, FILE or FILE:ARGUMENT")


def run(args: argparse.Namespace) -> None:
    """Measure and print a table."""
    from graftax.errors import BadInput

    if args.aot is not None:
        if args.name or not args.config:
            raise BadInput("bench --aot: expected --config FILE and no name of a measurement")
        _run_aot(args)
    elif args.config or args.overrides or args.step:
        raise BadInput("bench: got --config or --step, which belong to --aot SLICE")
    elif args.name is None:
        raise BadInput("bench: expected the name of a measurement, list, or --aot SLICE")
    else:
        _run_named(args)


def _run_aot(args: argparse.Namespace) -> None:
    from graftax.evaluate.aot import format_report
    from graftax.study import aot

    rows = aot.compile_steps(args.aot, args.config, args.overrides, args.step)
    print(json.dumps(rows, indent=1) if args.json else format_report(rows))


def _run_named(args: argparse.Namespace) -> None:
    import inspect
    import typing

    from graftax import config
    from graftax.errors import BadInput
    from graftax.evaluate.bench import BENCHES, format_table

    if args.name == "list":
        for name, function in BENCHES.items():
            settings = ", ".join(f"{p.name}={p.default}" for p in inspect.signature(function).parameters.values())
            print(f"{name:<12}{(function.__doc__ or '').splitlines()[0]}\n{'':<12}{settings}")
        return
    if args.name not in BENCHES:
        raise BadInput(f"bench {args.name!r}: expected list or one of {tuple(BENCHES)}")
    function = BENCHES[args.name]
    hints = typing.get_type_hints(function)
    known = inspect.signature(function).parameters
    settings = {}
    for key, text in config.read(None, args.settings).items():
        if key not in known:
            raise BadInput(f"bench {args.name}: unknown setting {key!r}, expected one of {tuple(known)}")
        settings[key] = config.convert(hints[key], text, key)
    rows = function(**settings)
    print(json.dumps(rows, indent=1) if args.json else format_table(rows))
