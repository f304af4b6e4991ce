"""`python -m graftax VERB ...` is `graftax VERB ...`."""

import sys

from graftax.cli.program import program

sys.exit(program())
