"""`graftax bench`: measure this installation; `graftax bench list` names what there is.

    graftax bench forward variant=DiT-S/2 rounds=3

Settings are the keyword arguments of the functions in graftax.evaluate.bench.
"""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("name", help="which measurement, or list")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings other than the default")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")


def run(args: argparse.Namespace) -> None:
    """Measure and print a table."""
    import inspect
    import typing

    from graftax.cli import config
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
