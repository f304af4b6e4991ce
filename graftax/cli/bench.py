"""`graftax bench`: measure this installation; `graftax bench list` names what there is.

    graftax bench forward variant=DiT-S/2 rounds=3
    graftax bench --aot v5e:2x4 --config configs/grafting.py:hyena_x,50
    graftax bench --aot v5e:2x4 --config configs/drawing.py:flux-schnell,8

Settings are the keyword arguments of the functions in graftax.evaluate.bench.

--aot compiles the steps of a config for a TPU slice (v4:2x2x2, v5e:16x16, v5p:2x2x2, v6e:4x4) that need not be there, at
true size and without weights: memory of a chip, what chips send each other, whether it fits, and the time at 40 % of peak
from the model's FLOPs. Computed, not measured. It takes minutes, and pip install graftax[tpu].
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from graftax.cli import options
from graftax.errors import BadInput, did_you_mean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("name", nargs="?", help="which measurement, or list")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings other than the default")
    options.add_json(parser)
    parser.add_argument("--aot", metavar="SLICE", help="compile the steps of --config for this slice")
    parser.add_argument("--step", action="append", default=[], metavar="STEP", help="with --aot: this step, not all")
    parser.add_argument("--config", metavar="FILE", help="with --aot: the experiment, FILE or FILE:ARGUMENT")


def run(args: argparse.Namespace) -> None:
    """Measure and print a table."""
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
    options.answer(args, rows, format_report(rows))


def _run_named(args: argparse.Namespace) -> None:
    import inspect
    import typing

    from graftax import config
    from graftax.evaluate.bench import BENCHES, format_table

    if args.name == "list":
        options.answer(args, *_listed(BENCHES))
        return
    if args.name not in BENCHES:
        names = ("list", *BENCHES)
        raise BadInput(f"bench {args.name!r}: expected one of {names}{did_you_mean(args.name, names)}")
    function = BENCHES[args.name]
    hints = typing.get_type_hints(function)
    known = inspect.signature(function).parameters
    settings = {}
    for key, text in config.read(None, args.settings).items():
        if key not in known:
            near = did_you_mean(key, known)
            raise BadInput(f"bench {args.name}: unknown setting {key!r}, expected one of {tuple(known)}{near}")
        settings[key] = config.convert(hints[key], text, key)
    rows = function(**settings)
    options.answer(args, rows, format_table(rows))


def _listed(benches: Mapping[str, Callable[..., Any]]) -> tuple[list[dict[str, Any]], str]:
    """All measurements as JSON types and as text."""
    found = [{"name": k, "what": (f.__doc__ or "").splitlines()[0], "settings": _defaults(f)} for k, f in benches.items()]
    lines = []
    for one in found:
        settings = ", ".join(f"{key}={value}" for key, value in one["settings"].items())
        lines.append(f"{one['name']:<12}{one['what']}\n{'':<12}{settings}")
    return found, "\n".join(lines)


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The settings of a measurement."""
    import inspect

    return {p.name: p.default for p in inspect.signature(function).parameters.values()}
