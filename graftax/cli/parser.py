"""The parser of the command line: a verb each for the modules of this folder, errors with the nearest name and the usage of
their own verb, and completion in the shell."""

from __future__ import annotations

import argparse
import importlib
import os
import re
from typing import Any

from graftax import __version__
from graftax.errors import did_you_mean

VERBS = (
    "demo", "inspect", "graft", "replay", "distill", "finetune", "sample", "evaluate", "geneval", "compare", "report",
    "convert", "encode", "synthesize", "scenes", "train", "analyze", "painters", "search", "plan", "reuse", "sweep",
    "inits", "cost", "bench", "zoo", "doctor",
)  # fmt: skip

EPILOG = """\
exit codes:
  0   done
  1   a bug in graftax (a traceback is printed), or ended by the watchdog
  2   bad input, config or usage; nothing can be written
  3   a loss or gradient became NaN or infinite; the last good state is kept
  42  asked to stop, state saved; the same command continues
  130 interrupted (143: by SIGTERM)

`graftax VERB --help` describes a verb. Config files take overrides: --config FILE --config.key.sub=value."""


class Parser(argparse.ArgumentParser):
    """Says which name was probably meant, and speaks of unknown flags before it misses others."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in (known := list(action.choices)):
            names = ", ".join(map(str, known))
            raise argparse.ArgumentError(action, f"got {value!r}, expected one of {names}{did_you_mean(value, known)}")

    def flags(self) -> list[str]:
        """All long flags."""
        return [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]


class VerbParser(Parser):
    """Of one verb: what it does not know it refuses itself, under its own usage."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for text in args or ():
            if text == "--":
                break
            if text.startswith("--") and (flag := text.partition("=")[0]) not in self.flags():
                self.error(f"unknown flag {flag}{did_you_mean(flag, self.flags())}")
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"got {' '.join(rest)} beside what it takes")
        return namespace, rest


def build() -> Parser:
    """The parser with all verbs. It imports their modules, but not JAX."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="graftax", description="Edit pretrained diffusion transformers: graft operators, distil, fine-tune.",
        epilog=EPILOG, formatter_class=form, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"graftax {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=VerbParser)
    for name in VERBS:
        module = importlib.import_module(f"graftax.cli.{name}")
        summary, _, detail = (module.__doc__ or "").partition("\n")
        sub = verbs.add_parser(
            name, help=summary.partition(": ")[2], description=f"{summary}\n{detail}", formatter_class=form,
            allow_abbrev=False,
        )  # fmt: skip
        module.add_arguments(sub)
        sub.add_argument("--quiet", action="store_true", help="print results, but neither progress nor what is being done")
        sub.set_defaults(run=module.run, parser=sub)
    return parser


def complete(parser: Parser) -> None:
    """Answer the shell that asks what may come next, and end; return at once where none asks."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def in_flags(message: str, parser: argparse.ArgumentParser) -> str:
    """A message of the package, in which arguments of functions are called as the flags that they are here.

    "num_heads=4: .." and "num_heads: .." become "--num-heads=4: .."; options of operators, in brackets, stay.
    """
    for flag in parser.flags() if isinstance(parser, Parser) else ():
        name = re.escape(flag.removeprefix("--").replace("-", "_"))
        message = re.sub(rf"(^|: ){name}(?=: )|(^|(?<!,) ){name}(?==)", rf"\1\2{flag}", message)
    return message
