"""Where activations live on a mesh. Model code names the axes of its arrays; whoever compiles says what the names mean.

    x = place(x, "batch", "tokens", "width")            # in the model: holds nothing by itself
    with placing(hold): ...                             # around its trace: hold(x, axes) constrains x

So models know no mesh. `graftax.train.sharding.activations` brings the table from these names to mesh axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import jax

Axes = tuple[str | None, ...]
Hold = Callable[[jax.Array, Axes], jax.Array]
Function = Callable[..., jax.Array]
Part = Callable[[Function, Sequence[Axes]], Function]
Count = Callable[[str], int]
_hold: ContextVar[Hold | None] = ContextVar("hold", default=None)
_part: ContextVar[Part | None] = ContextVar("part", default=None)
_count: ContextVar[Count | None] = ContextVar("count", default=None)


def place(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` with its axes named, None for one that is never split; outside of `placing` x as it is.

    Names in use: batch, tokens, width (of the residual stream), heads, hidden (between a pair of projections); of a kernel
    weights (the side that is not hidden).
    """
    hold = _hold.get()
    return x if hold is None else hold(x, axes)


def on_parts(function: Function, axes: Sequence[Axes]) -> Function:
    """`function` of arrays with these axes, whose result has those of the first, each device running it on its own part;
    outside of `placing` as it is. For what the compiler cannot split by itself, like a kernel; parts must not need each
    other."""
    part = _part.get()
    return function if part is None else part(function, axes)


def parts(axis: str) -> int:
    """Into how many parts an axis of this name is split where it divides; outside of `placing` 1."""
    count = _count.get()
    return 1 if count is None else count(axis)


@contextmanager
def placing(hold: Hold | None, part: Part | None = None, count: Count | None = None) -> Iterator[None]:
    """While this is open, `place(x, *axes)` is `hold(x, axes)`, `on_parts` is `part` and `parts` is `count`; None: all as it
    is. It acts on what is traced meanwhile."""
    tokens = _hold.set(hold), _part.set(part), _count.set(count)
    try:
        yield
    finally:
        _hold.reset(tokens[0])
        _part.reset(tokens[1])
        _count.reset(tokens[2])
