"""`python -m graftax.cli VERB ...` is `graftax VERB ...`."""

import sys

from graftax.cli.program import program

sys.exit(program())
