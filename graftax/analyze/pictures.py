"""Pictures of what analyses find, as PNGs with transparent ground and inks that are read on white and on black."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from graftax.evaluate.axes import COLOURS, INK, finish, log_scale, new_axes

MARKS = "osD^vP*"
Lines = Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike | None]]
"""By name: x (m,), y (m,), and the half length of each error bar (m,), or None."""


def heatmap(
    path: Path, values: ArrayLike, *, x: str, y: str, scale: str, rows: Sequence[Any], columns: Sequence[Any],
    limits: tuple[float | None, float | None] = (None, None), boxes: Sequence[tuple[int, int]] = (), numbers: str = "",
) -> None:  # fmt: skip
    """Draw values (r, c) as colours, NaN as nothing; row 0 is at the top.

    `rows`, `columns`: their labels; `scale`: what the colours mean; `limits`: the values at both ends of the scale; `boxes`:
    half-open ranges (lo, hi) framed along the diagonal; `numbers`: a format (".2f") to print the values with.
    """
    values = np.asarray(values, float)
    figure, axes = new_axes(x, y, (max(4.4, 1.6 + 0.34 * values.shape[1]), max(2.6, 1.0 + 0.28 * values.shape[0])))
    image = axes.imshow(values, cmap="viridis", vmin=limits[0], vmax=limits[1], aspect="auto")
    for labels, axis in ((columns, axes.xaxis), (rows, axes.yaxis)):
        every = max(1, -(-len(labels) // 16))
        axis.set_ticks(range(0, len(labels), every), [str(label) for label in labels[::every]], fontsize=7)
    for lo, hi in boxes:
        axes.add_patch(_frame(lo - 0.5, hi - lo))
    if numbers:
        _print_numbers(axes, image, values, numbers)
    bar = figure.colorbar(image, ax=axes, fraction=0.05)
    bar.set_label(scale, color=INK, fontsize=8)
    bar.ax.tick_params(colors=INK, labelsize=7)
    bar.outline.set_visible(False)
    figure.savefig(path, format="png")


def lines(
    path: Path, series: Lines, *, x: str, y: str, log: bool = False, integers: bool = True,
    mark: tuple[str, float] | None = None,
) -> None:  # fmt: skip
    """Draw up to seven named curves, with error bars where they have any; `mark`: name and height of a dashed line."""
    figure, axes = new_axes(x, y, (5.6, 3.2))
    for (name, (xs, ys, spread)), colour, shape in zip(series.items(), COLOURS, MARKS, strict=False):
        axes.errorbar(
            np.asarray(xs), np.asarray(ys), None if spread is None else np.asarray(spread), label=name, color=colour,
            marker=shape, markersize=3.5, linewidth=1.5, capsize=2,
        )  # fmt: skip
    axes.grid(color=INK, alpha=0.25, linewidth=0.5)
    if log:
        _log_scale(axes)
    if integers:
        axes.locator_params(axis="x", integer=True)
    _finish(path, figure, axes, mark, legend=len(series) > 1)


def bars(
    path: Path, series: Mapping[str, ArrayLike], labels: Sequence[Any], *, x: str, y: str, log: bool = False,
    mark: tuple[str, float] | None = None, strong: Sequence[int] = (),
) -> None:  # fmt: skip
    """Draw groups of bars, one group per label; those at the indices `strong` full, others paler where any is strong."""
    figure, axes = new_axes(x, y, (5.6, 3.0))
    width = 0.8 / len(series)
    for i, ((name, heights), colour) in enumerate(zip(series.items(), COLOURS, strict=False)):
        centres = np.arange(len(labels)) + (i - (len(series) - 1) / 2) * width
        drawn = axes.bar(centres, np.asarray(heights, float), width, label=name, color=colour)
        for j, bar in enumerate(drawn):
            bar.set_alpha(1.0 if not strong or j in strong else 0.45)
    axes.grid(axis="y", color=INK, alpha=0.25, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xticks(range(len(labels)), [str(label) for label in labels], fontsize=8 if len(labels) < 20 else 6)
    if log:
        _log_scale(axes)
    _finish(path, figure, axes, mark, legend=len(series) > 1)


def _log_scale(axes) -> None:
    axes.set_yscale("log")
    log_scale(axes.yaxis, *axes.get_ylim())


def _frame(start: float, size: float):
    from matplotlib.patches import Rectangle

    return Rectangle((start, start), size, size, fill=False, edgecolor="#ff5a36", linewidth=1.6)


def _print_numbers(axes, image, values: np.ndarray, form: str) -> None:
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            bright = image.norm(value) > 0.6
            axes.text(j, i, f"{value:{form}}", ha="center", va="center", fontsize=5.5, color="black" if bright else "white")


def _finish(path: Path, figure, axes, mark: tuple[str, float] | None, *, legend: bool) -> None:
    if mark is not None:
        axes.axhline(mark[1], color=INK, linewidth=1, linestyle="--", label=mark[0])
    finish(path, figure, legend=legend or mark is not None)
