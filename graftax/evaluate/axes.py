"""How every chart looks: on a transparent ground, in inks that are read on white and on black."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

INK = "#777777"
COLOURS = ("#2f6fb7", "#d9772b", "#3f9b5f", "#a04fa0", "#b8860b", "#2aa5a5", "#c0392b")


CHARACTER, BELOW = 0.08, 0.9
"""Inches: width of a letter of a label, and what ticks, labels and a legend take of a figure's height."""


def new_axes(x: str, y: str, size: tuple[float, float]) -> tuple[Any, Any]:
    """Figure and axes with these labels, `size` (width, height) in inches.

    A label of y that is longer than the axis stands above it.
    """
    # The object interface: pyplot would pick a backend and keep global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_xlabel(x, color=INK)
    if len(y) * CHARACTER < size[1] - BELOW:
        axes.set_ylabel(y, color=INK)
    else:
        axes.set_title(y, loc="left", color=INK, fontsize=9)
    axes.tick_params(which="both", colors=INK)
    for name, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(name in ("left", "bottom"))
    return figure, axes


def log_scale(axis: Any, low: float, high: float) -> None:
    """A logarithmic scale over `low` to `high` for `axes.xaxis` or `axes.yaxis`, labelled with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1,) if math.log10(high / low) > 3 else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def finish(path: Path, figure: Any, *, legend: bool) -> None:
    """Write the figure as a PNG, the legend above it."""
    if legend:
        figure.legend(
            frameon=False, labelcolor=INK, loc="outside upper center", ncols=4, columnspacing=1, handlelength=1.4, fontsize=8
        )
    figure.savefig(path, format="png")
