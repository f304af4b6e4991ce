"""Completion in the shell, by argcomplete: verbs, then the flags of the verb."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("line", "expected"), [("graftax insp", "inspect"), ("graftax sample demo --lab", "--labels")])
def test_the_shell_is_offered_what_may_come_next(tmp_path, line, expected):
    answers = tmp_path / "answers"
    environment = {
        **os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answers), "_ARGCOMPLETE_IFS": "\n",
    }  # fmt: skip
    subprocess.run([sys.executable, "-m", "graftax.cli"], env=environment, check=True, timeout=60)
    assert expected in answers.read_text().split()
