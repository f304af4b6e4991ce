"""The errors graftax raises on purpose, each with the exit code the command line ends with.

Exit codes: 0 done, 1 bug, 2 bad input or config, 3 non-finite numbers, 42 preempted after saving.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class GraftaxError(Exception):
    """Base of all deliberate errors. `exit_code` is what the command line returns."""

    exit_code = 1


class BadInput(GraftaxError, ValueError):
    """A file, argument or config that cannot be used. The message names the thing, its value and what was expected."""

    exit_code = 2


class NonFinite(GraftaxError, ArithmeticError):
    """A loss or gradient became NaN or infinite. The last finite state has been kept."""

    exit_code = 3


class Preempted(GraftaxError):
    """The process was asked to stop and has saved its state; running the same command again continues."""

    exit_code = 42


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """What a message on a `name` that is none of `known` ends with: "; did you mean ...?", "" where none is near.

    Capitals count as small letters.
    """
    names = {str(one).lower(): str(one) for one in known}
    near = difflib.get_close_matches(str(name).lower(), names, n=1)
    return f"; did you mean {names[near[0]]!r}?" if near else ""


@contextlib.contextmanager
def naming(what: object) -> Iterator[None]:
    """A `BadInput` that comes out of the block begins with `what`, as a rule the file that it is about."""
    try:
        yield
    except BadInput as error:
        line = str(error)
        raise BadInput(line if line.startswith(f"{what}:") else f"{what}: {line}") from None
