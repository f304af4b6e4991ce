"""`graftax VERB ...`: parses, runs the verb, turns deliberate errors into one line and an exit code."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from graftax.cli import options
from graftax.cli.compiled import keep_compiled
from graftax.errors import BadInput, GraftaxError

VERBS = (
    "demo", "inspect", "graft", "replay", "distill", "finetune", "sample", "evaluate", "compare", "report", "convert",
    "encode", "train", "analyze", "search", "sweep", "inits", "cost", "bench", "zoo", "doctor",
)  # fmt: skip
INTERRUPTED = 130
NOT_WRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO, errno.EPIPE,
)  # fmt: skip
"""What the system says where an output's place is at fault: full, forbidden, or a file where a folder should be."""
DISTRIBUTED = "GRAFTAX_DISTRIBUTED"
"""Environment variable, set by launch/tpu.sh: this command runs on every host of a slice at once."""

EPILOG = """\
exit codes:
  0   done
  1   a bug in graftax (a traceback is printed), or ended by the watchdog
  2   bad input, config or usage; nothing can be written
  3   a loss or gradient became NaN or infinite; the last good state is kept
  42  asked to stop, state saved; the same command continues
  130 interrupted (143: by SIGTERM)

`graftax VERB --help` describes a verb. Config files take overrides: --config FILE --config.key.sub=value."""
CONFIG_PREFIX = "--config."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code. `argv` without the program's name; default: the process's own."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Overrides are open-ended, so they are taken out before argparse sees the rest.
    overrides = [text.removeprefix(CONFIG_PREFIX) for text in argv if text.startswith(CONFIG_PREFIX)]
    args = _parser().parse_args([text for text in argv if not text.startswith(CONFIG_PREFIX)])
    args.overrides = overrides
    try:
        if overrides and not hasattr(args, "config"):
            args.parser.error(f"{args.verb} takes no config, so no {CONFIG_PREFIX}{overrides[0]}")
        if args.verb != "bench":  # it times compilations
            keep_compiled()
        if os.environ.get(DISTRIBUTED):
            _join_hosts()
        with options.OWNED:
            args.run(args)
        return 0
    except GraftaxError as error:
        print(f"graftax: error: {_one_line(error)}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        print(f"graftax: error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return BadInput.exit_code
    except KeyboardInterrupt:
        print("graftax: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="graftax", description="Edit pretrained diffusion transformers: graft operators, distil, fine-tune.",
        epilog=EPILOG, formatter_class=form, allow_abbrev=False,
    )  # fmt: skip
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in VERBS:
        module = importlib.import_module(f"graftax.cli.{name}")
        summary, _, detail = (module.__doc__ or "").partition("\n")
        sub = verbs.add_parser(
            name, help=summary.partition(": ")[2], description=f"{summary}\n{detail}", formatter_class=form,
            allow_abbrev=False,
        )  # fmt: skip
        module.add_arguments(sub)
        sub.set_defaults(run=module.run, parser=sub)
    return parser


def _join_hosts() -> None:
    """Make the processes that run this command on all hosts of a TPU slice one program."""
    import jax

    # The training loop agrees by itself on where to stop; that service would ignore SIGTERM outside of the loop.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize()


def _one_line(error: GraftaxError) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    from graftax.cli.program import program

    sys.exit(program())
