"""How every chart looks: on a transparent ground, in inks that are read on white and on black."""

from __future__ import annotations

from pathlib import Path
from typing import Any

INK = "#777777"
COLOURS = ("#2f6fb7", "#d9772b", "#3f9b5f", "#a04fa0", "#b8860b", "#2aa5a5", "#c0392b")


def new_axes(x: str, y: str, size: tuple[float, float]) -> tuple[Any, Any]:
    """Figure and axes with these labels, `size` (width, height) in inches."""
    # The object interface: pyplot would pick a backend and keep global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(which="both", colors=INK)
    for name, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(name in ("left", "bottom"))
    return figure, axes


def finish(path: Path, figure: Any, *, legend: bool) -> None:
    """Write the figure as a PNG, the legend above it."""
    if legend:
        figure.legend(
            frameon=False, labelcolor=INK, loc="outside upper center", ncols=4, columnspacing=1, handlelength=1.4, fontsize=8
        )
    figure.savefig(path, format="png")
