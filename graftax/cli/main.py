"""`graftax VERB ...`: parses, runs the verb, turns deliberate errors into one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Sequence

from graftax.allocator import keep_pages
from graftax.cli import options
from graftax.cli import parser as parsers
from graftax.cli.compiled import keep_compiled
from graftax.errors import BadInput, GraftaxError
from graftax.platforms import leave_out_absent_tpus

INTERRUPTED = 130
NOT_WRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO, errno.EPIPE,
)  # fmt: skip
"""What the system says where an output's place is at fault: full, forbidden, or a file where a folder should be."""
DISTRIBUTED = "GRAFTAX_DISTRIBUTED"
"""Environment variable, set by launch/tpu.sh: this command runs on every host of a slice at once."""

CONFIG_PREFIX = "--config."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code. `argv` without the program's name; default: the process's own."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Overrides are open-ended, so they are taken out before argparse sees the rest.
    overrides = [text.removeprefix(CONFIG_PREFIX) for text in argv if text.startswith(CONFIG_PREFIX)]
    parser = parsers.build()
    parsers.complete(parser)
    args = parser.parse_args([text for text in argv if not text.startswith(CONFIG_PREFIX)])
    args.overrides = overrides
    try:
        if overrides and not hasattr(args, "config"):
            args.parser.error(f"{args.verb} takes no config, so no {CONFIG_PREFIX}{overrides[0]}")
        _prepare(args)
        with _silence(args), options.OWNED:
            args.run(args)
        return 0
    except GraftaxError as error:
        print(f"graftax: error: {_one_line(error, args.parser)}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        print(f"graftax: error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return BadInput.exit_code
    except KeyboardInterrupt:
        print("graftax: interrupted", file=sys.stderr)
        return INTERRUPTED


def _prepare(args: argparse.Namespace) -> None:
    """What jax must be told before it is imported; verbs that need none of it never import it."""
    leave_out_absent_tpus()
    keep_pages()
    if args.verb != "bench":  # it times compilations
        keep_compiled()
    if os.environ.get(DISTRIBUTED):
        _join_hosts()


def _silence(args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    if not args.quiet:
        return contextlib.nullcontext()
    from graftax.progress import silence

    return silence()


def _join_hosts() -> None:
    """Make the processes that run this command on all hosts of a TPU slice one program."""
    import jax

    # The training loop agrees by itself on where to stop; that service would ignore SIGTERM outside of the loop.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize()


def _one_line(error: GraftaxError, parser: argparse.ArgumentParser) -> str:
    return parsers.in_flags(" ".join(str(error).split()), parser)
