"""Pictures for people: grids of images (Pillow) and curves (Matplotlib, without a display)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import IO, Any

import numpy as np
from PIL import Image

from graftax.checkpoint.files import replacing
from graftax.errors import BadInput
from graftax.evaluate.axes import COLOURS, INK, finish, log_scale, new_axes


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Images in [-1, 1], any shape, as uint8: -1 is 0 and 1 is 255, what lies beyond is cut off.

    127.5 x + 128, cut to 0..255, the fraction dropped: as in DiT's sample_ddp.py, from which FID is computed.
    """
    return np.clip(127.5 * np.asarray(pixels, np.float32) + 128, 0, 255).astype(np.uint8)


def grid(images: np.ndarray, columns: int, *, gap: int = 2, scale: int = 1, background: int = 96) -> np.ndarray:
    """Images (n, h, w, c) uint8, c 1 or 3, row by row as one image (H, W, c), each pixel drawn `scale` x `scale`."""
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3) or columns < 1:
        raise BadInput(f"grid: {images.dtype}{images.shape} in {columns} columns, expected uint8 (n, h, w, 1 or 3)")
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    n, h, w, c = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, c), background, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        canvas[top : top + h, left : left + w] = image
    return canvas


def save_png(target: Path | IO[bytes], image: np.ndarray) -> None:
    """Write an image (h, w, 1 or 3) uint8."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    if not isinstance(target, Path):
        picture.save(target, format="PNG", optimize=True)
        return
    with replacing(target) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


DASHES = ("-", "--", ":")
MARGIN, FEW, LINE, MARKS = 0.08, 6, 0.17, "osD^vP*"
"""Of points to the frame; names that fit beside their points; height of a line of names in inches; shapes of points."""

Series = Mapping[str, Sequence[tuple[float, float]]]
"""Curves by name: points (x, y)."""


def curves(
    path: Path, series: Series, *, x: str, y: str, log: bool = False, log_x: bool = False,
    size: tuple[float, float] = (5.6, 3.0),
) -> None:  # fmt: skip
    """Draw line charts into a PNG with transparent ground; colours that come again are dashed, then dotted.

    `log`, `log_x`: logarithmic axes, that of x labelled at the points.
    """
    figure, axes = _chart(x, y, size)
    for i, (name, points) in enumerate(series.items()):
        xs, ys = zip(*points, strict=True)
        style, colour = DASHES[i // len(COLOURS) % len(DASHES)], COLOURS[i % len(COLOURS)]
        mark = "o" if len(xs) < 12 else None
        axes.plot(xs, ys, style, label=name, color=colour, linewidth=1.6, marker=mark, markersize=3)
    if log_x:
        axes.set_xscale("log")
        marks = sorted({point[0] for points in series.values() for point in points})
        axes.set_xticks(marks, [f"{mark:,.0f}" for mark in marks])
        axes.set_xticks([], minor=True)
    elif all(float(point[0]).is_integer() for points in series.values() for point in points):
        axes.locator_params(axis="x", integer=True)
    if log:
        axes.set_yscale("log")
        log_scale(axes.yaxis, *axes.get_ylim())
    finish(path, figure, legend=len(series) > 1)


def bars(path: Path, series: Series, *, x: str, y: str, size: tuple[float, float] = (5.6, 3.0)) -> None:
    """Draw grouped bars, one group per x, into a PNG with transparent ground."""
    figure, axes = _chart(x, y, size)
    width = 0.8 / len(series)
    for i, ((name, points), colour) in enumerate(zip(series.items(), COLOURS, strict=False)):
        xs, ys = (np.array(values) for values in zip(*points, strict=True))
        axes.bar(xs + (i - (len(series) - 1) / 2) * width, ys, width, label=name, color=colour)
    axes.set_xticks(sorted({int(point[0]) for points in series.values() for point in points}))
    finish(path, figure, legend=len(series) > 1)


def dots(
    path: Path, series: Mapping[str, Mapping[str, Sequence[float]]], *, x: str, mark: tuple[str, float], log: bool = False
) -> None:
    """Draw one line per row, in order from the top, with a dot for each series that has values there, into a PNG.

    `series`: by name, then by row, the values of all seeds: the dot is their mean, the bar reaches from least to largest.
    `mark`: name and value of a vertical line to compare with.
    """
    rows = list(dict.fromkeys(row for values in series.values() for row in values))
    figure, axes = _chart(x, "", (5.6, 1.2 + 0.24 * len(rows)))
    for (name, values), colour in zip(series.items(), COLOURS, strict=False):
        heights, means = [rows.index(row) for row in values], [fmean(seeds) for seeds in values.values()]
        axes.plot(means, heights, "o", label=name, color=colour, markersize=4)
        axes.hlines(heights, *zip(*map(_ends, values.values()), strict=True), color=colour, linewidth=1.2, alpha=0.6)
    axes.axvline(mark[1], color=INK, linewidth=1, linestyle="--", label=mark[0])
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=MARGIN)
    if log:
        axes.set_xscale("log")
        log_scale(axes.xaxis, *axes.get_xlim())
    finish(path, figure, legend=True)


def scatter(path: Path, points: Mapping[str, tuple[float, Sequence[float]]], *, x: str, y: str) -> None:
    """Draw named points (x, all seeds' y) into a PNG: a dot at the mean, a bar from the least to the largest y.

    The names stand beside their points, or where there are many in a column at the right, each with a line to its point.
    """
    figure, axes = _chart(x, y, (5.6, max(2.6, 1.4 + 0.16 * len(points))))
    means = {name: (x, fmean(seeds)) for name, (x, seeds) in points.items()}
    for name, point in means.items():
        axes.plot(*point, "o", color=COLOURS[0], markersize=4)
        axes.vlines(point[0], *_ends(points[name][1]), color=COLOURS[0], linewidth=1.2, alpha=0.6)
    axes.margins(x=MARGIN, y=MARGIN)
    axes.locator_params(axis="x", nbins=6)
    _name_points(axes, means, len(points) <= FEW)
    finish(path, figure, legend=False)


def _name_points(axes: Any, points: Mapping[str, tuple[float, float]], beside: bool) -> None:
    """Write every point's name at its height, moved up where another name is in the way."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    least, taken = LINE / axes.figure.get_figheight(), -1.0
    arrow = {"arrowstyle": "-", "relpos": (0, 0.5), "color": INK, "alpha": 0.4, "linewidth": 0.5}
    for name, (x, y) in sorted(points.items(), key=lambda item: item[1][1]):
        across = (x - left) / (right - left)
        taken = max((y - low) / (high - low), taken + least)
        place = (across + (0.02 if across < 0.6 else -0.02), taken) if beside else (1.06, taken)
        axes.annotate(
            name, (x, y), place, textcoords="axes fraction", color=INK, fontsize=8 if beside else 7, va="center",
            ha="right" if beside and across >= 0.6 else "left", annotation_clip=False, arrowprops=None if beside else arrow,
        )  # fmt: skip


def roofline(path: Path, points: Mapping[str, tuple[float, float]], chip: str, peak: float, bandwidth: float) -> None:
    """Draw named points (FLOPs per byte, FLOP/s) under a chip's roof, min(peak, intensity * bandwidth), into a PNG."""
    figure, axes = _chart("FLOPs per byte", f"attainable TFLOP/s on {chip}", (5.6, 3.4))
    ridge = peak / bandwidth
    ends = [min([ridge, *(x for x, _ in points.values())]) / 4, max([ridge, *(x for x, _ in points.values())]) * 4]
    axes.plot([ends[0], ridge, ends[1]], [ends[0] * bandwidth / 1e12, peak / 1e12, peak / 1e12], color=INK, linewidth=1.2)
    for i, (name, (x, y)) in enumerate(points.items()):
        mark = MARKS[i % len(MARKS)]
        axes.plot(x, y / 1e12, mark, color=COLOURS[i % len(COLOURS)], markersize=6, label=name, alpha=0.8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        log_scale(axis, *axis.get_view_interval())
    axes.legend(loc="lower right", frameon=False, labelcolor=INK, fontsize=7)
    finish(path, figure, legend=False)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _chart(x: str, y: str, size: tuple[float, float]) -> tuple[Any, Any]:
    figure, axes = new_axes(x, y, size)
    axes.grid(color=INK, alpha=0.25, linewidth=0.5)
    return figure, axes
