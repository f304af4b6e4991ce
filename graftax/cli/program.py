"""The command `graftax`: what is done before and after `main`, to live well with Ctrl-C and with a full disk."""

from __future__ import annotations

import atexit
import os
import signal
import sys


def program() -> int:
    """Run the command line of this process and return its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends the process without a word: while the next lines import
    from graftax import interrupts

    interrupts.end_at_once()
    atexit.register(interrupts.ignore)  # the first is called last: what then comes is over in a moment
    from graftax.cli import compiled
    from graftax.cli.main import main
    from graftax.errors import BadInput

    compiled.watch()
    code = main()
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at the end
        if not code:
            print(f"graftax: error: output: {error.strerror}", file=sys.stderr)
            return BadInput.exit_code
    return code
