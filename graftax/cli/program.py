"""The command `graftax`: what is done before and after `main`, to live well with Ctrl-C and with a full disk."""

from __future__ import annotations

import os
import sys

from graftax import interrupts


def program() -> int:
    """Run the command line of this process and return its exit code."""
    interrupts.end_at_once()  # before the other imports, which take a second
    from graftax.cli.main import main
    from graftax.errors import BadInput

    code = main()
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at the end
        print(f"graftax: error: standard output: {error.strerror}", file=sys.stderr)
        return BadInput.exit_code
    return code
